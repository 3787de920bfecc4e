# Runs in the lab's host, which has VT-d and an NVMe disk with virtual functions: gives the whole of it to a guest, one
# `host: WHAT: RESULT` line for each check.
#
# SRIOV  the program
# VMM    reference-vmm and its arguments, but for the function
# WORK   a folder for what is not kept
set -u
load() { modprobe -d "$LAB_KERNEL_ROOT" "$1" || echo "host: cannot load $1"; }
devices=/sys/bus/pci/devices
disk=$(basename "$(dirname "$(grep -l 0x010802 $devices/*/class)")")
mkdir -p "$WORK/mounted"
check "the disk has virtual functions" [ "$(cat "$devices/$disk/sriov_totalvfs")" = 1 ]
load vfio-pci
load vfio_iommu_type1
check "bind" "$SRIOV" bind "$disk"
{
    timeout -k 5 100 sh -c "exec $VMM --vfio $disk" </dev/null 2>&1
    echo "host: vmm status: $?"
} | tee /job/guest.log
check "the VMM ended" grep -q "host: vmm status: 0" /job/guest.log

# The host's own driver finds what the guest's wrote.
load nvme
load ext4
check "release" "$SRIOV" release "$disk"
appears() {
    for _ in $(seq 100); do
        [ -b /dev/nvme0n1 ] && return 0
        sleep 0.1
    done
    return 1
}
check "the host has the disk again" appears
e2fsck -fn /dev/nvme0n1 >/job/fsck.log 2>&1
check "fsck" [ $? = 0 ]
mount -t ext4 -o ro /dev/nvme0n1 "$WORK/mounted"
check "the file is what the guest wrote" same "$(sed -n 's/^guest: sum: \([0-9a-f]*\).*/\1/p' /job/guest.log)" "$(sha256sum <"$WORK/mounted/written" | cut -c1-64)"
umount "$WORK/mounted"
check "no DMA was blocked" no_fault
exit $failed
