# Runs in the lab's host, which has VT-d, an old network card behind a root port, and a card of its own at the same cable: shares the old one
# between two guests, which download at once. One `host: WHAT: RESULT` line for each check.
#
# SRIOV    the program
# VPIO     the program
# VMM      reference-vmm and its arguments, but for the function and the guest's command line
# FRAMES   the program that looks at frames
# MODEL    the model's file
# OPTIONS  how `vpio serve` is to share
# ID       vendor and device of the card
# DRIVER   what drives it in the guests
# BYTES    how much each guest downloads
# WORK     a folder for what is not kept
set -u
mkdir -p "$WORK/www"
load vfio-pci
load vfio_iommu_type1
load e1000e
load af_packet
httpd -f -p 8080 -h "$WORK/www" &
helpers=$!
# shellcheck disable=SC2086 # words
trap 'kill $helpers 2>/dev/null' EXIT
own=$(named "0x8086 0x10d3")
interface=$(ls "$devices/$own/net")
host_mac=$(cat "$devices/$own/net/$interface/address")
# What nobody is to have sent is seen as well.
ip link set "$interface" up promisc on
ip addr add 192.168.81.1/24 dev "$interface"

card=$(named "$ID")
check "bind" "$SRIOV" bind "$card"
# shellcheck disable=SC2086 # words
"$VPIO" serve "$card" "$MODEL" --socket "$WORK/card" --verbose $OPTIONS 2>/job/serve.log &
server=$!
helpers="$helpers $server"
until [ -S "$WORK/card" ] || ! kill -0 $server; do sleep 0.1; done
guests=
stations=
for guest in 1 2; do
    mac=02:00:00:00:81:0$guest
    ip=192.168.81.$((guest + 1))
    # QEMU's cable carries frames that are shorter than Ethernet's shortest, which an NE2000's driver takes for errors: those of ARP.
    arp -s $ip $mac
    stations="$stations $mac $ip"
    head -c "$BYTES" /dev/urandom >"$WORK/www/$guest"
    words="lab.driver=$DRIVER lab.guest=$guest lab.mac=$mac lab.ip=$ip lab.host=$host_mac lab.sum=$(sum <"$WORK/www/$guest")"
    {
        timeout -k 5 200 sh -c "exec $VMM --vpio socket=$WORK/card --cmdline 'console=ttyS0 quiet panic=-1 ipv6.disable=1 $words'" </dev/null 2>&1
        echo "host: VMM $guest status: $?"
    } >"/job/guest-$guest.log" &
    guests="$guests $!"
done
# shellcheck disable=SC2086 # words
"$FRAMES" from "$interface" "$WORK/end" $stations >/job/frames.log &
watcher=$!

# alive: both guests.
# shellcheck disable=SC2086 # words
alive() { kill -0 $guests 2>/dev/null; }
# The host has something for both that is not acknowledged.
at_once() {
    for guest in 2 3; do
        netstat -tn | grep -qE "192.168.81.1:8080 .*192.168.81.$guest:.*(ESTABLISHED|FIN_WAIT1)" || return 1
    done
}
until [ "$(cat /job/guest-[12].log | grep -c ": ready")" = 2 ] || ! alive; do sleep 0.5; done
touch "$WORK/www/begin"
together=0
while alive; do
    sleep 0.2
    at_once && together=$((together + 1))
done
# shellcheck disable=SC2086 # words
wait $guests
touch "$WORK/end"
wait $watcher
for _ in $(seq 50); do
    [ "$(grep -c "by force" /job/serve.log)" = 2 ] && break
    sleep 0.2
done
kill $server
# One after the other: lines of both at once would be mixed.
cat /job/guest-[12].log
sed "s/^/host: /" /job/serve.log /job/frames.log
echo "host: downloads at once, looks: $together"
clean=": [1-9][0-9]* frames, 0 astray, 0 missed"
for guest in 1 2; do
    check "VMM $guest ended" grep -q "host: VMM $guest status: 0" "/job/guest-$guest.log"
    check "guest $guest has its own frames only" grep -q "$clean" "/job/guest-$guest.log"
done
check "what was sent is the guests'" grep -q "$clean" /job/frames.log
check "both download at once" [ "$together" -ge 3 ]
check "both take turns" grep -qE "after ([6-9]|[0-9]{2,}) turns, 0 by force" /job/serve.log
check "nothing was denied" [ "$(grep -c denied: /job/serve.log)" = 0 ]
check "no DMA was blocked" no_fault
exit $failed
