# init of domain 0 on Xen: the conformance suite of grant-table, whose lines go to the console, then a disk that the example blkback serves to this
# kernel's own xen-blkfront; `xen: WHAT: RESULT` tells what is checked here.
load_drivers
dmesg -n 1 # no message of the kernel amid these lines

check() { # check WHAT COMMAND…
    what=$1
    shift
    if "$@"; then echo "xen: $what: ok"; else echo "xen: $what: FAILED"; fi
}

check "conformance" conformance

# The disk is a file of 8 MiB.
mkdir -p /proc/xen
mount -t xenfs xen /proc/xen
mount -t tmpfs tmp /tmp
dd if=/dev/urandom of=/tmp/disk bs=64k count=128 2>/dev/null
dd if=/dev/urandom of=/tmp/new bs=64k count=32 2>/dev/null
blkback /tmp/disk /tmp/detach &
until_disk() { # at most 20 s
    for _ in $(seq 100); do
        [ -b /dev/xvda ] && return
        usleep 200000
    done
    false
}
sum() { sha256sum | cut -c1-64; }
part() { dd if="$1" bs=64k skip=16 count=32 2>/dev/null | sum; }
same() { [ -n "$1" ] && [ "$1" = "$2" ]; }
write() { dd if=/tmp/new of=/dev/xvda bs=64k seek=16 conv=fsync 2>/dev/null; }
check "blkfront finds the disk" until_disk
check "blkfront reads it" same "$(sum </dev/xvda)" "$(sum </tmp/disk)"
check "blkfront writes to it" write
check "the file is what was written" same "$(part /tmp/disk)" "$(sum </tmp/new)"
echo 3 >/proc/sys/vm/drop_caches
check "blkfront reads what was written" same "$(part /dev/xvda)" "$(sum </tmp/new)"
touch /tmp/detach
wait # until both ends are closed
echo "xen: done"
poweroff -f
