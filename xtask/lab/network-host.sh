# The host's end of a guest's network, before the scripts that have one: what the guest downloads at http://192.168.77.1:8080/blob is
# $WORK/www/blob, and what it sends to port 9000 goes to $WORK/uploaded.
#
# TAP      the network interface to make
# BUSYBOX  a busybox with tunctl, ip, httpd and nc
# WORK     a folder for what is not kept
httpd='' nc=''
connect_network() {
    "$BUSYBOX" tunctl -t "$TAP" >/dev/null
    "$BUSYBOX" ip addr add 192.168.77.1/24 dev "$TAP"
    check "make the tap" "$BUSYBOX" ip link set "$TAP" up
    mkdir -p "$WORK/www"
    head -c 4194304 /dev/urandom >"$WORK/www/blob"
    "$BUSYBOX" httpd -f -p 192.168.77.1:8080 -h "$WORK/www" &
    httpd=$!
    mkfifo "$WORK/silent" # nc answers the end of its input with the end of the connection
    "$BUSYBOX" nc -l -p 9000 <>"$WORK/silent" >"$WORK/uploaded" &
    nc=$!
}
disconnect_network() {
    # shellcheck disable=SC2086 # words
    kill $httpd $nc 2>/dev/null
    "$BUSYBOX" tunctl -d "$TAP" >/dev/null
}
