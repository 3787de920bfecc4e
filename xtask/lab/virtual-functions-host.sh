# Runs in the lab's host: a guest whose network card has virtual functions, one `host: WHAT: RESULT` line for each check.
#
# VMM    reference-vmm and its arguments
# WORK   a folder for what is not kept
set -u
mkdir -p "$WORK/www"
head -c 1048576 /dev/urandom >"$WORK/www/blob"
truncate -s 1G "$WORK/www/long"
# tap TAP NETWORK
tap() {
    tunctl -t "$1" >/dev/null
    ip addr add "192.168.$2.1/24" dev "$1"
    ip link set "$1" up
}
tap lab 77
httpd -f -p 8080 -h "$WORK/www" &
helpers=$!
mkfifo "$WORK/silent" # nc answers the end of its input with the end of the connection
for number in 0 1 2; do
    tap "labv$number" "8$number"
    nc -l -p "900$number" <>"$WORK/silent" >"$WORK/uploaded$number" &
    helpers="$helpers $!"
done
# shellcheck disable=SC2086 # words
trap 'kill $helpers 2>/dev/null' EXIT

{
    timeout -k 5 200 sh -c "echo \$\$ >$WORK/pid; exec $VMM" </dev/null 2>&1
    echo "host: vmm status: $?"
} | while IFS= read -r line; do
    printf '%s\n' "$line"
    case $line in
    "guest: two appear: "* | "guest: they disappear: "*)
        # Each function has a thread, as long as it exists.
        echo "host: threads of virtual functions: $(cat "/proc/$(cat "$WORK/pid")"/task/*/comm | grep -c net0v)"
        ;;
    "guest: traffic of function 1: "*) ip neigh | sed -n 's/^192.168.[78].*dev \([^ ]*\) lladdr \([^ ]*\).*/host: neighbour \1 \2/p' ;;
    esac
done | tee /job/guest.log

reported() { sed -n "s/^guest: $1: \([0-9a-f]*\).*/\1/p" /job/guest.log | sort -u; }
check "the downloads arrived" same "$(reported "download sum")" "$(sum <"$WORK/www/blob")"
for number in 0 1; do
    check "the upload of function $number arrived" same "$(reported "upload sum")" "$(sum <"$WORK/uploaded$number")"
done
check "each has an address of its own" [ "$(sed -n 's/^host: neighbour [^ ]* //p' /job/guest.log | sort -u | wc -l)" = 3 ]
threads() { [ "$(sed -n 's/^host: threads of virtual functions: //p' /job/guest.log | xargs)" = "2 0" ]; }
check "their threads come and go" threads
astray=$(sed -n 's/^guest: \(.*\) was told to go astray.*/\1/p' /job/guest.log)
# One DMA was blocked, the one that was meant to be.
blocked() { sed -n 's/.*Request device \[\([0-9a-f:.]*\)\].*/0000:\1/p' /job/guest.log | sort -u; }
check "only the function that went astray was blocked" same "$(blocked)" "$astray"
check "the vmm ended" grep -q "host: vmm status: 0" /job/guest.log
exit $failed
