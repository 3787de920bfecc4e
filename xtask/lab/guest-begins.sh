#!/bin/busybox sh
# How the inits of the lab's guests begin, before each of them.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
load_drivers() {
    for module in $(cat /modules/order); do
        insmod "/modules/$module" || echo "guest: cannot load $module"
    done
}
