# Runs in the lab's host, which has VT-d, an 82576 (igb) and a card without SR-IOV: one `host: WHAT: RESULT` line for each check.
#
# SRIOV  the program
# PROBE  the example that opens a function
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

load() { modprobe -d "$LAB_KERNEL_ROOT" "$1" || echo "host: cannot load $1"; }
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
timeout 60 "$PROBE" "$vf" || failed=1
check "release" sriov release "$vf"
check "igbvf has it again" has_driver "$vf" igbvf
check "enable 4 goes through 0" sriov enable "$pf" 4 --no-driver
check "sysfs has 4 without driver" has_virtual 4
check "disable" sriov disable "$pf"
has_virtual 0 || failed=1
dmesg | grep -i "DMAR.*fault" && failed=1
exit $failed
