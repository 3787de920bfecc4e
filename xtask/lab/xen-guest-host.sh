# Runs in the lab's host: a guest that sees Xen, with two disks and a network interface of Xen's, one `host: WHAT: RESULT` line for each check.
#
# VMM    reference-vmm and its arguments, but for the devices and the report
# ROOT   the image of the guest's root, of which this host has a copy on write
# and what network-host.sh needs
set -u
trap disconnect_network EXIT
mkdir -p "$WORK/root"
head -c 2097152 /dev/urandom >"$WORK/root/pattern"
(cd "$WORK/root" && sha256sum pattern >SHA256SUMS)
truncate -s 32M "$WORK/disk.img"
check "make the disk" mkfs.ext4 -q -F -d "$WORK/root" "$WORK/disk.img"
connect_network
{
    timeout -k 5 320 sh -c "exec $VMM --disk $ROOT,pv=xen --disk $WORK/disk.img,pv=xen --net tap=$TAP,pv=xen --report /job/exits.json" </dev/null 2>&1
    echo "host: vmm status: $?"
} | tee /job/guest.log
check "the VMM ended" grep -q "host: vmm status: 0" /job/guest.log

e2fsck -fn "$WORK/disk.img" >/job/fsck.log 2>&1
check "fsck" [ $? = 0 ]
e2fsck -fn "$ROOT" >/job/fsck-root.log 2>&1
check "fsck of the root" [ $? = 0 ]
debugfs -R "dump /written $WORK/written" "$WORK/disk.img" 2>/dev/null
reported() { sed -n "s/^guest: $1: \([0-9a-f]*\).*/\1/p" /job/guest.log; }
written=$(reported "disk sum")
check "the disk holds what the guest wrote" same "$written" "$(sum <"$WORK/written")"
check "the upload arrived" same "$written" "$(sum <"$WORK/uploaded")"
check "the download arrived" same "$(reported "download sum")" "$(sum <"$WORK/www/blob")"

# The guest's hypercalls that reached user space, from its reset to its end, are fewer than a tenth of its requests: what it sends to the
# disk stays in the kernel.
requests=$(reported requests)
hypercalls=$(tr -d ' \n' </job/exits.json | sed -n 's/.*"kind":"hypercall","count":\([0-9]*\).*/\1/p')
check "requests make no exits" [ "$((hypercalls * 10))" -lt "$requests" ]
echo "host: requests and hypercalls: $requests $hypercalls"
exit $failed
