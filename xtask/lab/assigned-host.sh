# Runs in the lab's host, which has VT-d, an 82576 (igb) and an 82574 (e1000e) at the same cable: gives a virtual function of the former to the
# same guest under reference-vmm and QEMU, in front of their emulated VT-d and behind it, and counts what a transfer takes. A line
# `host: VMM PLACE: EXITS MAPS UNMAPS` for each.
#
# SRIOV   the program
# VMM     reference-vmm and its arguments, but for the function and the guest's command line
# KERNEL  the guest's, as among the arguments
# INITRD  the same
# WORK    a folder for what is not kept
set -u
devices=/sys/bus/pci/devices
mkdir -p "$WORK/www"
for module in e1000e igb vfio-pci vfio_iommu_type1; do load $module; done
own=$(ls "$(dirname "$(grep -l 0x10d3 $devices/*/device)")/net")
pf=$(basename "$(dirname "$(grep -l 0x10c9 $devices/*/device)")")
card=$("$SRIOV" enable "$pf" 1 --up --no-driver)
check "bind" "$SRIOV" bind "$card"
ip addr add 192.168.78.1/24 dev "$own"
ip link set "$own" up
head -c 1048576 /dev/urandom >"$WORK/www/small"
httpd -f -p 192.168.78.1:8080 -h "$WORK/www" &
httpd=$!
nc=
trap 'kill $httpd $nc 2>/dev/null' EXIT
mkfifo "$WORK/silent" # nc answers the end of its input with the end of the connection

events=/sys/kernel/tracing/events
echo hist:keys=reason >$events/kvm/kvm_userspace_exit/trigger
calls=$events/syscalls/sys_enter_ioctl
map=0x3b71
unmap=0x3b72
echo "hist:keys=cmd if cmd == $map || cmd == $unmap" >$calls/trigger
hits() { sed -n 's/.*Hits: *//p' "$1"; }
called() { sed -n "s/^{ cmd: *$(printf %d $1) *} hitcount: *//p" $calls/hist | grep . || echo 0; }
counts() { echo "$(hits $events/kvm/kvm_userspace_exit/hist) $(called $map) $(called $unmap)"; }

# run NAME COMMAND…: the VMM; what it took between the guest's mark and the end of the upload.
run() {
    name=$1
    shift
    {
        nc -l -p 9000 <>"$WORK/silent" >"$WORK/uploaded"
        counts >"$WORK/after"
    } &
    nc=$!
    timeout -k 5 100 "$@" </dev/null 2>&1 | while IFS= read -r line; do
        printf '%s\n' "$line"
        case $line in
        "guest: compared transfer begins"*) counts >"$WORK/before" ;;
        esac
    done | tee "$WORK/guest.log"
    check "$name: the upload arrived" same "$(sed -n 's/^guest: compared upload: \([0-9a-f]*\).*/\1/p' "$WORK/guest.log")" "$(sum <"$WORK/uploaded")"
    set -- $(cat "$WORK/before" "$WORK/after")
    echo "host: $name: $(($4 - $1)) $(($5 - $2)) $(($6 - $3))"
}
words="console=ttyS0 quiet panic=-1 lab.compared"
behind="$words intel_iommu=on iommu.strict=1"
# The first arguments are the machine's and its IOMMU's.
peer() {
    append=$1
    shift
    run "$@" -accel kvm -cpu host -smp 1 -m 256M -nodefaults -no-user-config -display none -no-reboot -serial stdio \
        -kernel "$KERNEL" -initrd "$INITRD" -append "$append" -device "vfio-pci,host=$card"
}
run "ours plain" sh -c "exec $VMM --vfio $card --cmdline '$words'"
peer "$words" "qemu plain" qemu-system-x86_64 -M q35
run "ours behind" sh -c "exec $VMM --vfio $card --iommu vtd,strict,caching-mode --cmdline '$behind'"
peer "$behind" "qemu behind" qemu-system-x86_64 -M q35,kernel-irqchip=split -device intel-iommu,intremap=on,caching-mode=on
check "no DMA was blocked" no_fault
exit $failed
