#!/bin/busybox sh
# init of a guest whose root lies on a vhost-user disk: the first part finds the disk, the second runs from it.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "guest: cannot load $module"
done
mkdir -p /root
mount -t ext4 /dev/vda /root || echo "guest: mount: FAILED"
for folder in proc sys dev; do
    mount --move /$folder /root/$folder
done
exec switch_root /root /bin/busybox sh /init
