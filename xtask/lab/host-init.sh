#!/bin/busybox sh
# init of the lab's host (L1). It sees the machine that runs the lab as a throw-away copy on
# write, and runs /job/main.sh in it.
/bin/busybox mkdir -p /bin /lower /top /host
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "lab: cannot load $module"
done

mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /lower
mount -t tmpfs -o size=75% top /top
mkdir /top/upper /top/work
mount -t overlay -o lowerdir=/lower,upperdir=/top/upper,workdir=/top/work host /host
mkdir -p /host/job /host/proc /host/sys /host/dev /host/run
mount --bind /proc /host/proc
mount --bind /sys /host/sys
mount --bind /dev /host/dev
mkdir -p /dev/pts
mount -t devpts -o ptmxmode=666 devpts /host/dev/pts
mount -t tracefs trace /host/sys/kernel/tracing
mount -t tmpfs run /host/run
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 job /host/job
mkdir -p /dev/shm /host/run/busybox
mount -t tmpfs shm /dev/shm
cp /bin/busybox /host/run/busybox/
chroot /host /run/busybox/busybox --install -s /run/busybox
ip link set lo up

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/busybox
echo "lab: the host is up"
chroot /host /bin/sh /job/main.sh </dev/null >/host/job/output.log 2>&1
echo $? >/host/job/status
sync
poweroff -f
