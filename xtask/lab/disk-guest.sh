#!/bin/busybox sh
# init of a guest that drives an NVMe disk of the host itself: `guest: WHAT: RESULT` lines, as in guest-init.sh.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "guest: cannot load $module"
done
check() { # check WHAT COMMAND…
    what=$1
    shift
    if "$@"; then echo "guest: $what: ok"; else echo "guest: $what: FAILED"; fi
}
sum() { sha256sum | cut -c1-64; }

found() {
    for _ in $(seq 100); do
        [ -b /dev/nvme0n1 ] && return 0
        sleep 0.1
    done
    return 1
}
check "nvme finds the disk" found
make() { mke2fs /dev/nvme0n1 >/dev/null; }
check "make a file system" make
mkdir /disk
check "mount" mount -t ext4 /dev/nvme0n1 /disk
dd if=/dev/urandom of=/disk/written bs=64k count=64 2>/dev/null
written=$(sum </disk/written)
umount /disk
mount -t ext4 /dev/nvme0n1 /disk
again() { [ "$(sum </disk/written)" = "$written" ]; }
check "read again" again
umount /disk
echo "guest: sum: $written"
grep nvme /proc/interrupts
echo "guest: requests and interrupts: $(awk '{ print $1 + $5 }' /sys/block/nvme0n1/stat) $(awk '/nvme0q/ { sum += $2 } END { print sum }' /proc/interrupts)"
echo "guest: done"
poweroff -f
