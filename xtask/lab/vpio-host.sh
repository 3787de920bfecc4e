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
    timeout -k 5 200 sh -c "exec $VMM $* --report /job/$name.json --cmdline 'console=ttyS0 quiet panic=-1 $words'" </dev/null 2>&1
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
helpers=$!
# shellcheck disable=SC2086 # words
trap 'kill $helpers 2>/dev/null' EXIT

run driven "lab.small=$(sum <"$WORK/www/small") lab.large=$(sum <"$WORK/www/large")" "$modelled" | tee /job/driven.log
check "the drivers' VMM ended" grep -q "host: driven vmm status: 0" /job/driven.log
check "no driver was denied anything" [ "$(grep -c "reference-vmm: .*denied" /job/driven.log)" = 0 ]
check "no DMA of a driver was blocked" no_fault

# Frames for the hostile guest's receive descriptors: ARP's, whom nobody answers.
ping 192.168.82.9 >/dev/null 2>&1 &
helpers="$helpers $!"
hostile="lab.hostile mem=128M iomem=relaxed"
run hostile "$hostile" "--cpus 2 $modelled" | tee /job/hostile.log
check "the hostile guest's VMM ended" grep -q "host: hostile vmm status: 0" /job/hostile.log
check "no DMA of a hostile guest was blocked" no_fault
# One line for each descriptor that changed after it was checked: what came went where it was checked.
kept() { [ "$(grep -c "guest: hostile: .* where it was checked" /job/hostile.log)" = 2 ]; }
check "what changes after the check has no effect" kept
# For each race: some of it was let through and some denied, so that the change was seen while it was checked.
raced() { [ "$(grep -cE "guest: hostile: .*: [1-9][0-9]* (sent|read), [1-9][0-9]* not" /job/hostile.log)" = 2 ]; }
check "what changes during the check is denied or has no effect" raced
# The same without models: what they denied was real, for there is a fault at each attempt's own address. Races are left out: whether one is
# won depends on the machine, and what it would win is what the attempts at `a region` and `a descriptor` ask for from the beginning.
run unmodelled "$hostile lab.control" "--cpus 2 --vfio $rtl8139,$e1000,$ahci" >/job/unmodelled.log
attempts=$(sed -n 's/^guest: hostile: \(.*\): \(0x[0-9a-f]*\).*/\2 \1/p' /job/unmodelled.log)
while read -r address what; do
    blocked() { dmesg | grep -q "DMAR.*fault addr $address "; }
    check "without a model its DMA is blocked: $what" blocked
done <<END
$attempts
END
[ $failed = 0 ] || dmesg | grep -iE 'vfio|dmar' | tail -n 40
exit $failed
