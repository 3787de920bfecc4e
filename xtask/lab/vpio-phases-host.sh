# Runs in the same host as vpio-host.sh: gives the NE2000 alone to the guest, in a boot for each phase, of which the first does nothing more
# than to find that the card answers.
#
# SRIOV, VMM, MODELS and WORK as for vpio-host.sh; PHASES the names of the phases.
set -u
mkdir -p "$WORK/www"
card=$(named "0x10ec 0x8029")
own=$(named "0x8086 0x10d3")
load vfio-pci
load vfio_iommu_type1
load e1000e
check "bind" "$SRIOV" bind "$card"

interface=$(ls "$devices/$own/net")
ip addr add 192.168.81.1/24 dev "$interface"
ip link set "$interface" up
# QEMU's cable carries frames that are shorter than Ethernet's shortest, which an NE2000's driver takes for errors: those of ARP.
arp -s 192.168.81.2 52:54:00:12:34:50
head -c 16384 /dev/urandom >"$WORK/www/small"
head -c 1048576 /dev/urandom >"$WORK/www/large"
httpd -f -p 8080 -h "$WORK/www" &
httpd=$!
trap 'kill $httpd 2>/dev/null' EXIT

for phase in $PHASES; do
    words="lab.phase=$phase lab.small=$(sum <"$WORK/www/small") lab.large=$(sum <"$WORK/www/large")"
    timeout -k 5 150 sh -c "exec $VMM --vpio $card,model=$MODELS/ne2000.vpio --report /job/$phase.json --cmdline 'console=ttyS0 quiet panic=-1 $words'" \
        </dev/null 2>&1
done
exit $failed
