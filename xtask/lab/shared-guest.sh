# init of a guest that has a network card by turns with another guest: `guest: NUMBER: WHAT: RESULT` lines. It gives itself a station
# address of its own, downloads when the host says so, and looks whether frames come that are not for it.
#
# On the command line: lab.driver=, lab.guest= (its number), lab.mac= and lab.ip= (its addresses), lab.host= (the host's station address; by
# IP it is 192.168.81.1) and lab.sum= (of what it downloads).
load_drivers
for word in $(cat /proc/cmdline); do
    case $word in
    lab.driver=*) driver=${word#*=} ;;
    lab.guest=*) guest=${word#*=} ;;
    lab.mac=*) mac=${word#*=} ;;
    lab.ip=*) ip=${word#*=} ;;
    lab.host=*) host_mac=${word#*=} ;;
    lab.sum=*) sum=${word#*=} ;;
    esac
done
say() { echo "guest: $guest: $*"; }
soon() { # soon COMMAND…: it succeeds within half a minute
    for _ in $(seq 60); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.5
    done
    return 1
}
host=192.168.81.1

interface=
for found in /sys/class/net/*; do
    [ "$(basename "$(readlink "$found/device/driver")")" = "$driver" ] && interface=$(basename "$found")
done
check "$guest: finds its card" [ -n "$interface" ]
ip link set dev "$interface" address "$mac"
ip addr add "$ip/24" dev "$interface"
ip link set "$interface" up
# As the host does: there is no ARP.
arp -s "$host" "$host_mac"
frames to "$interface" /tmp/done "$mac" "$ip" >/tmp/frames &
watcher=$!
check "$guest: answers" soon ping -q -c 1 -W 1 "$host"
say "ready"
check "$guest: may begin" soon wget -q -O /dev/null "http://$host:8080/begin"
sent() { [ "$(wget -q -O - "http://$host:8080/$guest" | sum)" = "$sum" ]; }
check "$guest: download" sent
touch /tmp/done
wait $watcher
while read -r line; do say "frames: $line"; done </tmp/frames
say "receive errors: $(cat "/sys/class/net/$interface/statistics/rx_errors")"
grep -E "$interface|CPU" /proc/interrupts
dmesg | grep "$interface" | sed "s/^/guest: $guest: kernel log: /"
echo "guest: done"
poweroff -f
