# Runs in the lab's host, which has VT-d, an 82576 (igb) and an 82574 (e1000e) at the same cable: gives virtual functions of the former to
# guests, one `host: WHAT: RESULT` line for each check.
#
# SRIOV  the program
# VMM    reference-vmm and its arguments, but for the function and the guest's command line
# WORK   a folder for what is not kept
set -u
failed=0
check() { # check WHAT COMMAND…
    what=$1
    shift
    if "$@"; then
        echo "host: $what: ok"
    else
        echo "host: $what: FAILED"
        failed=1
    fi
}
load() { modprobe -d "$LAB_KERNEL_ROOT" "$1" || echo "host: cannot load $1"; }
devices=/sys/bus/pci/devices
own=$(basename "$(dirname "$(grep -l 0x10d3 $devices/*/device)")")
mkdir -p "$WORK/www"
# refused WORDS FUNCTION: the VMM ends with one line that contains WORDS.
refused() {
    ! sh -c "$VMM --vfio $2" >"$WORK/errors" 2>&1 && [ "$(wc -l <"$WORK/errors")" = 1 ] && grep -q "$1" "$WORK/errors" ||
        { cat "$WORK/errors"; false; }
}

load e1000e
load igb
pf=$(basename "$(dirname "$(grep -l 0x10c9 $devices/*/device)")")
enable() { "$SRIOV" enable "$pf" 2 --up --no-driver >"$WORK/functions"; }
check "enable" enable
card=$(sed -n 1p "$WORK/functions")
other=$(sed -n 2p "$WORK/functions")
check "no VFIO is said" refused "modprobe vfio-pci vfio_iommu_type1" "$card"
load vfio-pci
load vfio_iommu_type1
check "no such function is said" refused "there is no such function" 77:00.0
check "no driver is said" refused "$card: no driver has it, not vfio-pci: run .sriov bind $card" "$card"
check "another driver is said" refused "$own: e1000e has it, not vfio-pci" "$own"
check "bind" "$SRIOV" bind "$card"
check "bind the other" "$SRIOV" bind "$other"
check "twice is said" refused "$card: is assigned twice" "$card,$card"
check "an IOMMU is refused" refused "cannot be put behind an IOMMU" "$card --iommu virtio"
group=/dev/vfio/$(basename "$(readlink "$devices/$card/iommu_group")")
exec 9<>"$group"
check "another user is said" refused "$card: another process uses its IOMMU group, $group" "$card"
exec 9>&-

interface=$(ls "$devices/$own/net")
ip addr add 192.168.78.1/24 dev "$interface"
ip link set "$interface" up
head -c 4194304 /dev/urandom >"$WORK/www/blob"
httpd -f -p 192.168.78.1:8080 -h "$WORK/www" &
httpd=$!
trap 'kill $httpd $nc 2>/dev/null' EXIT

events=/sys/kernel/tracing/events/kvm/kvm_userspace_exit
exits() { grep '^{' $events/hist >"$WORK/exits" 2>/dev/null; cp "$WORK/exits" "/job/exits-$1"; }
echo "hist:keys=reason" >$events/trigger
mkfifo "$WORK/silent" # nc answers the end of its input with the end of the connection
{
    nc -l -p 9000 <>"$WORK/silent" >"$WORK/uploaded"
    exits after
} &
nc=$!

# run NAME FUNCTION WORDS: the VMM, with these words for the guest's kernel.
run() {
    timeout -k 5 100 sh -c "echo \$\$ >$WORK/$1.pid; exec $VMM --vfio $2 --cmdline 'console=ttyS0 quiet panic=-1 $3'" </dev/null 2>&1
    echo "host: $1 vmm status: $?"
}
run peer "$other" lab.peer >/job/peer.log &
peer=$!
run first "$card" "" | while IFS= read -r line; do
    printf '%s\n' "$line"
    case $line in
    "guest: transfer begins"*)
        sleep 1
        exits before
        ;;
    "guest: done"*)
        sleep 1
        kill -9 "$(cat "$WORK/first.pid")" "$(cat "$WORK/peer.pid")"
        ;;
    esac
done | tee /job/first.log
run again "$card" lab.again | while IFS= read -r line; do
    printf '%s\n' "$line"
    case $line in "guest: reboots"*) touch "$WORK/www/rebooted" ;; esac
done | tee /job/again.log

wait $peer
cat /job/peer.log
reported() { sed -n "s/^guest: $1: \([0-9a-f]*\).*/\1/p" /job/first.log; }
sum() { sha256sum | cut -c1-64; }
same() { [ -n "$1" ] && [ "$1" = "$2" ]; }
check "the download arrived" same "$(reported "download sum")" "$(sum <"$WORK/www/blob")"
check "the upload arrived" same "$(reported "upload sum")" "$(sum <"$WORK/uploaded")"
check "two guests talk" same "$(reported "sum from the peer")" "$(sed -n "s/^guest: peer's sum: \([0-9a-f]*\).*/\1/p" /job/peer.log)"
check "the VMM was killed" grep -q "host: first vmm status: 137" /job/first.log
check "after that two lives of a guest had the function" [ "$(grep -c "guest: ping: ok" /job/again.log)" = 2 ]
check "the second VMM ended" grep -q "host: again vmm status: 0" /job/again.log
check "release" "$SRIOV" release "$card"
check "disable" "$SRIOV" disable "$pf"
no_fault() { ! dmesg | grep -i "DMAR.*fault"; }
check "no DMA was blocked" no_fault
[ $failed = 0 ] || {
    ip -s link
    dmesg | grep -iE 'e1000e|igb|vfio|dmar'
}
exit $failed
