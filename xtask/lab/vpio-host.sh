# Runs in the lab's host, which has VT-d, three old network cards and an AHCI controller with a disk behind root ports, and a card of its own
# at the same cable: gives all four to a guest that drives them as models allow, then to one that programs DMA to where it has no
# memory. One `host: WHAT: RESULT` line for each check.
#
# SRIOV   the program
# VMM     reference-vmm and its arguments, but for the functions, the report and the guest's command line
# MODELS  the folder with the models
# WORK    a folder for what is not kept
set -u
mkdir -p "$WORK/www"
ne2000=$(named "0x10ec 0x8029")
rtl8139=$(named "0x10ec 0x8139")
e1000=$(named "0x8086 0x100e")
ahci=$(named "0x8086 0x2922")
own=$(named "0x8086 0x10d3")
load vfio-pci
load vfio_iommu_type1
load e1000e
bound() { for device in "$ne2000" "$rtl8139" "$e1000" "$ahci"; do "$SRIOV" bind "$device" || return 1; done; }
check "bind" bound

# run NAME WORDS ARGUMENT…: the VMM, with these words for the guest's kernel.
run() {
    name=$1
    words=$2
    shift 2
    timeout -k 5 150 sh -c "exec $VMM $* --report /job/$name.json --cmdline 'console=ttyS0 quiet panic=-1 $words'" </dev/null 2>&1
    echo "host: $name vmm status: $?"
}
modelled="--vpio $ne2000,model=$MODELS/ne2000.vpio --vpio $rtl8139,model=$MODELS/rtl8139cp.vpio --vpio $e1000,model=$MODELS/e1000.vpio --vpio $ahci,model=$MODELS/ahci.vpio"

interface=$(ls "$devices/$own/net")
for net in 81 82 83; do ip addr add 192.168.$net.1/24 dev "$interface"; done
ip link set "$interface" up
# QEMU's cable carries frames that are shorter than Ethernet's shortest, which an NE2000's driver takes for errors: those of ARP.
arp -s 192.168.81.2 52:54:00:12:34:50
head -c 16384 /dev/urandom >"$WORK/www/small"
head -c 1048576 /dev/urandom >"$WORK/www/large"
httpd -f -p 8080 -h "$WORK/www" &
httpd=$!
trap 'kill $httpd 2>/dev/null' EXIT

run driven "lab.small=$(sum <"$WORK/www/small") lab.large=$(sum <"$WORK/www/large")" "$modelled" | tee /job/driven.log
check "the drivers' VMM ended" grep -q "host: driven vmm status: 0" /job/driven.log
check "no driver was denied anything" [ "$(grep -c "reference-vmm: .*denied" /job/driven.log)" = 0 ]
check "no DMA of a driver was blocked" no_fault

run hostile "lab.hostile mem=128M iomem=relaxed" "$modelled" | tee /job/hostile.log
check "the hostile guest's VMM ended" grep -q "host: hostile vmm status: 0" /job/hostile.log
check "no DMA of a hostile guest was blocked" no_fault
# The same without models: what they denied was real.
run unmodelled "lab.hostile mem=128M iomem=relaxed" "--vfio $rtl8139,$e1000,$ahci" >/job/unmodelled.log
for device in "$rtl8139" "$e1000" "$ahci"; do
    blocked() { dmesg | grep -q "DMAR.*device \[${device#0000:}\] fault addr 0x7"; }
    check "without a model its DMA is blocked: $(cat "$devices/$device/device")" blocked
done
[ $failed = 0 ] || dmesg | grep -iE 'vfio|dmar' | tail -n 40
exit $failed
