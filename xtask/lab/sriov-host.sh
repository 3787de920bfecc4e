# Runs in the lab's host, which has VT-d, an 82576 (igb) and an 82574 (e1000e), without SR-IOV and without a reset of its own, each behind a root
# port: one `host: WHAT: RESULT` line for each check.
#
# SRIOV  the program
# PROBE  the example that opens functions
set -u
sriov() { "$SRIOV" "$@" 2>/tmp/errors >/tmp/out; }
# refused WORDS COMMAND…: the program ends with an error that contains WORDS.
refused() {
    words=$1
    shift
    ! sriov "$@" && grep -q "$words" /tmp/errors || { cat /tmp/errors /tmp/out; false; }
}
devices=/sys/bus/pci/devices
driver() { basename "$(readlink "$devices/$1/driver" 2>/dev/null)" 2>/dev/null; }
has_driver() { [ "$(driver "$1")" = "$2" ]; }
virtual() { ls -d "$devices/$pf"/virtfn* 2>/dev/null | wc -l; }
has_virtual() { [ "$(virtual)" = "$1" ]; }

pf=$(basename "$(dirname "$(ls $devices/*/sriov_totalvfs)")")
plain=$(basename "$(dirname "$(grep -l 0x10d3 $devices/*/device)")")

check "no driver enables nothing" refused "does not enable virtual functions" enable "$pf" 2
load igb
load igbvf
check "list finds the card" sriov list
check "list says 0 of 7" grep -q "^$pf 8086:10c9 driver igb, group .*, 0 of 7 virtual functions" /tmp/out
check "8 of 7 are refused" refused "8 virtual functions, the device has 7" enable "$pf" 8
check "no SR-IOV is said" refused "no SR-IOV" enable "$plain" 1
check "enable 2" sriov enable "$pf" 2 --up
check "sysfs has 2" has_virtual 2
vf=$(sed -n 1p /tmp/out)
check "the requester ID is the kernel's" [ "$(basename "$(readlink $devices/"$pf"/virtfn0)")" = "$vf" ]
sleep 2
check "igbvf has the function" has_driver "$vf" igbvf
check "the function is named when the physical one is meant" refused "name the physical one" enable "$vf" 1
check "no vfio-pci is said" refused "modprobe vfio-pci" bind "$vf"
load vfio-pci
load vfio_iommu_type1
check "bind" sriov bind "$vf"
check "vfio-pci has it" has_driver "$vf" vfio-pci
check "the group is there" [ -c "$(cat /tmp/out)" ]
timeout 60 "$PROBE" function "$vf" || failed=1
check "release" sriov release "$vf"
check "igbvf has it again" has_driver "$vf" igbvf
check "enable 4 goes through 0" sriov enable "$pf" 4 --no-driver
check "sysfs has 4 without driver" has_virtual 4
check "disable" sriov disable "$pf"
has_virtual 0 || failed=1

# A physical function that user space has: who has a virtual one needs its token, and may not reset what both are on.
check "vfio-pci takes the physical function" sriov bind "$pf"
check "what a token is for is said" grep -q "vf-token" /tmp/errors
check "vfio-pci enables nothing of its own accord" refused "enable_sriov" enable "$pf" 1
echo 1 >/sys/module/vfio_pci/parameters/enable_sriov
timeout 60 "$PROBE" token "$pf" || failed=1
check "vfio-pci enables one" sriov enable "$pf" 1
vf=$(cat /tmp/out)
check "vfio-pci takes the virtual function" sriov bind "$vf"
check "that it needs a token is said" grep -q "needs the VF token" /tmp/errors
check "vfio-pci disables it" sriov disable "$pf"
check "the host has the physical function again" sriov release "$pf"
load e1000e
check "vfio-pci takes the other card" sriov bind "$plain"
timeout 60 "$PROBE" slot "$plain" || {
    failed=1
    dmesg | tail -n 20
}
dmesg | grep -i "DMAR.*fault" && failed=1
exit $failed
