# Runs in the lab's host, which has VT-d, an 82576 (igb) and an 82574 (e1000e) at the same cable: gives virtual functions of the former to
# guests, one `host: WHAT: RESULT` line for each check.
#
# SRIOV          the program
# REFERENCE_VMM  the VMM
# VMM            that and its arguments, but for the function and the guest's command line
# KERNEL         the guest's, as among the arguments
# INITRD         the same
# WORK           a folder for what is not kept
set -u
modprobe() { command modprobe -d "$LAB_KERNEL_ROOT" "$1"; }
devices=/sys/bus/pci/devices
own=$(basename "$(dirname "$(grep -l 0x10d3 $devices/*/device)")")
mkdir -p "$WORK/www" "$WORK/page" "$WORK/bin"
# The book's page, followed: its reader has these programs and files.
ln -s "$SRIOV" "$WORK/bin/sriov"
printf '#!/bin/sh\nexec timeout -k 5 200 "%s" "$@"\n' "$REFERENCE_VMM" >"$WORK/bin/reference-vmm"
chmod +x "$WORK/bin/reference-vmm"
PATH=$WORK/bin:$PATH
ln -s "$KERNEL" "$WORK/page/vmlinuz"
ln -s "$INITRD" "$WORK/page/initrd.img"
# page WORDS: its commands that begin with these.
page() {
    here=$PWD
    cd "$WORK/page" || exit 1
    while IFS= read -r line <&8; do
        case $line in
        "$1"*) check "page: $line" eval "$line" </dev/null ;;
        esac
    done 8</job/page
    cd "$here" || exit 1
}
# refused WORDS FUNCTION: the VMM ends with one line that contains WORDS.
refused() {
    ! sh -c "$VMM --vfio $2" >"$WORK/errors" 2>&1 && [ "$(wc -l <"$WORK/errors")" = 1 ] && grep -q "$1" "$WORK/errors" ||
        { cat "$WORK/errors"; false; }
}

load e1000e
load igb
pf=$(basename "$(dirname "$(grep -l 0x10c9 $devices/*/device)")")
check "no VFIO is said" refused "modprobe vfio-pci vfio_iommu_type1" "$pf"
page "modprobe "
page "sriov enable "
card=$(basename "$(readlink "$devices/$pf/virtfn0")")
other=$(basename "$(readlink "$devices/$pf/virtfn1")")
check "no such function is said" refused "there is no such function" 77:00.0
check "no driver is said" refused "$card: no driver has it, not vfio-pci: run .sriov bind $card" "$card"
check "another driver is said" refused "$own: e1000e has it, not vfio-pci" "$own"
page "sriov bind "
check "bind the other" "$SRIOV" bind "$other"
check "twice is said" refused "$card: is assigned twice" "$card,$card"
check "an IOMMU that does not tell is refused" refused "behind .--iommu vtd,caching-mode., and no other" "$card --iommu virtio"
group=/dev/vfio/$(basename "$(readlink "$devices/$card/iommu_group")")
exec 9<>"$group"
check "another user is said" refused "$card: another process uses its IOMMU group, $group" "$card"
exec 9>&-

interface=$(ls "$devices/$own/net")
ip addr add 192.168.78.1/24 dev "$interface"
ip link set "$interface" up
head -c 4194304 /dev/urandom >"$WORK/www/blob"
head -c 1048576 /dev/urandom >"$WORK/www/small"
page "reference-vmm "
httpd -f -p 192.168.78.1:8080 -h "$WORK/www" &
httpd=$!
trap 'kill $httpd $nc $nc2 2>/dev/null' EXIT

events=/sys/kernel/tracing/events/kvm/kvm_userspace_exit
exits() { grep '^{' $events/hist >"$WORK/exits" 2>/dev/null; cp "$WORK/exits" "/job/exits-$1"; }
echo "hist:keys=reason" >$events/trigger
mkfifo "$WORK/silent" # nc answers the end of its input with the end of the connection
{
    nc -l -p 9000 <>"$WORK/silent" >"$WORK/uploaded"
    exits after
} &
nc=$!
nc2=

# run NAME FUNCTION WORDS: the VMM, with these words for the guest's kernel.
run() {
    timeout -k 5 250 sh -c "echo \$\$ >$WORK/$1.pid; exec $VMM --vfio $2 --cmdline 'console=ttyS0 quiet panic=-1 $3'" </dev/null 2>&1
    echo "host: $1 vmm status: $?"
}
run peer "$other" lab.peer | while IFS= read -r line; do
    printf '%s\n' "$line"
    case $line in
    "guest: the peer reboots"*) touch "$WORK/www/peer-rebooted" ;;
    esac
done >/job/peer.log &
peer=$!
run first "$card" lab.first | while IFS= read -r line; do
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
check "no DMA was blocked" no_fault

# What VFIO pins of the VMM's memory it accounts as locked.
calls=/sys/kernel/tracing/events/syscalls/sys_enter_ioctl
map=0x3b71
unmap=0x3b72
echo "hist:keys=cmd if cmd == $map || cmd == $unmap" >$calls/trigger
counted() { sed -n "s/^{ cmd: *$(printf %d $1) *} hitcount: *//p" $calls/hist; }
locked() { sed -n 's/VmLck:[^0-9]*//p' "/proc/$(cat "$WORK/behind.pid")/status"; }
pinned() {
    echo "host: pinned $1: $(locked), map and unmap calls: $(counted $map) $(counted $unmap)"
}
nc -l -p 9001 <>"$WORK/silent" >"$WORK/translated" &
nc2=$!
# All of it, as long as the guest's unit is off. A busy machine takes its time to start the VMM.
all() {
    for _ in $(seq 600); do
        [ "$(locked 2>/dev/null)" = "262144 kB" ] && return 0
        sleep 0.1
    done
    return 1
}
(check "all is pinned before" all) &
VMM="$VMM --iommu vtd,strict,caching-mode"
run behind "$card" "lab.behind intel_iommu=on iomem=relaxed memmap=4K\$0x5a5a000" | while IFS= read -r line; do
    printf '%s\n' "$line"
    case $line in
    "guest: translated transfer begins"*) pinned "with the interface up" ;;
    "guest: translated upload"*) pinned "after the transfer" ;;
    "guest: interface down"*) pinned "with the interface down" ;;
    "guest: reboots"*) touch "$WORK/www/rebooted" ;;
    esac
done | tee /job/behind.log
wait $peer
cat /job/peer.log
reported() { sed -n "s/^guest: $1: \([0-9a-f]*\).*/\1/p" /job/first.log; }
check "the download arrived" same "$(reported "download sum")" "$(sum <"$WORK/www/blob")"
check "the upload arrived" same "$(reported "upload sum")" "$(sum <"$WORK/uploaded")"
check "two guests talk" same "$(reported "sum from the peer")" "$(sed -n "s/^guest: peer's sum: \([0-9a-f]*\).*/\1/p" /job/peer.log)"
check "the peer rebooted" [ "$(grep -c "guest: ping: ok" /job/peer.log)" = 2 ]
check "the VMM was killed" grep -q "host: first vmm status: 137" /job/first.log
behind() { sed -n "s/^guest: translated $1: \([0-9a-f]*\).*/\1/p" /job/behind.log; }
check "the translated download arrived" same "$(behind download)" "$(sum <"$WORK/www/small")"
check "the translated upload arrived" same "$(behind upload)" "$(sum <"$WORK/translated")"
check "two lives of a guest had the function" [ "$(grep -c "guest: ping: ok" /job/behind.log)" = 2 ]
check "the last VMM ended" grep -q "host: behind vmm status: 0" /job/behind.log
blocked() {
    dmesg | grep -i "DMAR.*fault" >"$WORK/faults"
    grep -q "Write.*device \[${card#0000:}\] fault addr 0x5a5a000 " "$WORK/faults" && ! grep "fault addr" "$WORK/faults" | grep -v 0x5a5a000
}
check "only what it wrote elsewhere was blocked" blocked
page "sriov release "
page "sriov disable "
[ $failed = 0 ] || {
    ip -s link
    dmesg | grep -iE 'e1000e|igb|vfio|dmar'
}
exit $failed
