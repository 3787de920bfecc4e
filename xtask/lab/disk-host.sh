# Runs in the lab's host, which has VT-d, an NVMe disk with virtual functions, an AHCI controller, which knows MSI and no MSI-X, an 82540EM
# (e1000), which has but an interrupt pin, and an 82574 (e1000e) at the same cable: gives the whole of the first three to a guest, then the
# last two of them to one that has them behind an IOMMU, and so an I/O APIC in user space; one `host: WHAT: RESULT` line for each check.
#
# SRIOV  the program
# VMM    reference-vmm and its arguments, but for the function
# WORK   a folder for what is not kept
set -u
devices=/sys/bus/pci/devices
disk=$(basename "$(dirname "$(grep -l 0x010802 $devices/*/class)")")
# The board has an AHCI controller of its own, at 00:1f.2.
sata=$(basename "$(dirname "$(grep -l 0x2922 $devices/*/device | grep -v 1f.2)")")
net=$(basename "$(dirname "$(grep -l 0x100e $devices/*/device)")")
mkdir -p "$WORK/mounted" "$WORK/www"
check "the disk has virtual functions" [ "$(cat "$devices/$disk/sriov_totalvfs")" = 1 ]
load vfio-pci
load vfio_iommu_type1
for function in "$disk" "$sata" "$net"; do
    check "bind $function" "$SRIOV" bind "$function"
done
load e1000e
own=$(ls "$(dirname "$(grep -l 0x10d3 $devices/*/device)")/net")
ip addr add 192.168.78.1/24 dev "$own"
ip link set "$own" up
head -c 1048576 /dev/urandom >"$WORK/www/blob"
httpd -f -p 192.168.78.1:8080 -h "$WORK/www" &
httpd=$!
mkfifo "$WORK/silent" # nc answers the end of its input with the end of the connection
nc=
trap 'kill $httpd $nc 2>/dev/null' EXIT
events=/sys/kernel/tracing/events/kvm/kvm_userspace_exit
echo hist:keys=reason >$events/trigger
exits() { sed -n 's/.*Hits: *//p' $events/hist; }

# Two functions of the board's own bridge, which are in one group.
for function in 0000:00:1f.2 0000:00:1f.3; do "$SRIOV" bind $function >/dev/null; done
one_group() {
    ! sh -c "$VMM --vfio 00:1f.2,00:1f.3 --iommu vtd,caching-mode" >"$WORK/errors" 2>&1 && grep -q "1f.2 and 0000:00:1f.3 are in one IOMMU group" "$WORK/errors" ||
        { cat "$WORK/errors"; false; }
}
check "one group is said" one_group

# run NAME FUNCTIONS ARGUMENTS WORDS: the VMM, with these words for the guest's kernel.
run() {
    {
        nc -l -p 9000 <>"$WORK/silent" >"$WORK/$1.uploaded"
        exits >"$WORK/$1.counted"
        mv "$WORK/$1.counted" "$WORK/$1.exits"
    } &
    nc=$!
    {
        timeout -k 5 200 sh -c "exec $VMM --vfio $2 $3 --cmdline 'console=ttyS0 quiet panic=-1 $4'" </dev/null 2>&1
        echo "host: vmm status: $?"
    } | while IFS= read -r line; do
        printf '%s\n' "$line"
        case $line in
        "guest: transfer begins"*) before=$(exits) ;;
        "guest: frames and interrupts"*)
            for _ in $(seq 100); do # on a busy machine they are counted later than this is said
                [ -e "$WORK/$1.exits" ] && break
                sleep 0.1
            done
            echo "host: exits for the transfer: $(($(cat "$WORK/$1.exits") - before))"
            ;;
        esac
    done | tee "/job/$1.log"
    said() { sed -n "s/^guest: $2: \([0-9a-f]*\).*/\1/p" "/job/$1.log"; }
    check "$1: the VMM ended" grep -q "host: vmm status: 0" "/job/$1.log"
    check "$1: the download arrived" same "$(said "$1" download)" "$(sum <"$WORK/www/blob")"
    check "$1: the upload arrived" same "$(said "$1" upload)" "$(sum <"$WORK/$1.uploaded")"
}
run plain "$disk,$sata,$net" "" lab.plain
run behind "$sata,$net" "--iommu vtd,strict,caching-mode" "lab.behind intel_iommu=on"
check "the second guest reads what the first wrote" same "$(said plain "AHCI sum")" "$(said behind "AHCI sum")"

# The host asks for a function that a VMM has: the VMM ends.
sh -c "exec $VMM --vfio $net" </dev/null >/job/asked.log 2>&1 &
vmm=$!
pinned() {
    for _ in $(seq 600); do
        grep -q "VmLck:.* 262144 kB" /proc/$vmm/status && return 0
        sleep 0.1
    done
    return 1
}
check "a third VMM has the card" pinned
check "the host asks for the card" "$SRIOV" release "$net"
wait $vmm
check "the third VMM says why it ends" grep -q "$net is asked for by the host" /job/asked.log

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
check "the file is what the guest wrote" same "$(said plain "NVMe sum")" "$(sha256sum <"$WORK/mounted/written" | cut -c1-64)"
umount "$WORK/mounted"
check "no DMA was blocked" no_fault
exit $failed
