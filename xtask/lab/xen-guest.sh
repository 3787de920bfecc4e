#!/bin/busybox sh
# init of a guest that sees Xen and has a disk and a network interface of Xen's: `guest: WHAT: RESULT` lines, as in guest-init.sh.
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

said() { dmesg | grep -q "$1"; }
check "the hypervisor is Xen" said "Hypervisor detected: Xen HVM"
check "it is version 4.10" said "Xen version 4.10"
check "events come by vectors of the vCPUs" said "Xen HVM callback vector for event delivery is enabled"

# request KIND PATH [VALUE]: asks xenstore (io/xs_wire.h), and prints the answer after its header.
exec 3<>/dev/xen/xenbus
request() {
    length=$(printf '\\%03o' $((${#2} + 1 + ${#3})))
    printf "\\$(printf %03o "$1")\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0\\0$length\\0\\0\\0%s\\0%s" "$2" "$3" >&3
    dd bs=4096 count=1 <&3 2>/dev/null | tail -c +17 | tr '\0' ' '
}
directory=1 read=2 write=11 remove=13
names() { request $directory device | grep -q vbd; }
check "xenstore answers" names

appears() {
    for _ in $(seq 100); do
        [ -b /dev/xvda ] && return 0
        sleep 0.1
    done
    return 1
}
check "xen-blkfront finds the disk" appears
check "it has persistent grants and indirect descriptors" said "xvda: .*persistent grants: enabled; indirect descriptors: enabled"
mkdir /disk
check "mount" mount -t ext4 /dev/xvda /disk
if grep -q lab.reboot /proc/cmdline && [ ! -e /disk/rebooted ]; then
    touch /disk/rebooted
    umount /disk
    reboot -f
fi
disk_read() { (cd /disk && sha256sum -s -c SHA256SUMS); }
check "disk read" disk_read
dd if=/dev/urandom of=/disk/written bs=64k count=32 2>/dev/null
written=$(sum </disk/written)
umount /disk
mount -t ext4 /dev/xvda /disk
remounted() { [ "$(sum </disk/written)" = "$written" ]; }
check "disk write" remounted
echo "guest: disk sum: $written"

# Network: both directions, in packets that are cut into segments elsewhere.
check "xen-netfront finds the interface" [ -d /sys/class/net/eth0 ]
ip addr add 192.168.77.2/24 dev eth0
ip link set eth0 up
check "it has an event channel for each direction" grep -q vif0-q0-rx /proc/interrupts
check "ping" ping -q -c 3 -W 5 192.168.77.1
packets() { cat "/sys/class/net/eth0/statistics/$1_packets"; }
few() { # few DIRECTION BEFORE: less than 2 MiB need where each has to fit a wire
    [ $(($(packets "$1") - $2)) -lt 1400 ]
}
before=$(packets rx)
echo "guest: download sum: $(wget -q -O - http://192.168.77.1:8080/blob | sum)"
check "the download comes uncut" few rx "$before"
upload() { nc 192.168.77.1 9000 </disk/written; }
before=$(packets tx)
check "upload" upload
check "the upload goes uncut" few tx "$before"
umount /disk

# Tools that detach and attach do it by the store: the front end's nodes go away, and come back.
vbd=device/vbd/51712
gone() {
    for _ in $(seq 100); do
        [ -b /dev/xvda ] || return 0
        sleep 0.1
    done
    return 1
}
nodes="backend backend-id virtual-device device-type"
for node in $nodes; do
    request $read $vbd/$node >/tmp/$node
done
request $remove $vbd >/tmp/answer
check "the disk is detached" gone
for node in $nodes; do
    request $write $vbd/$node "$(tr -d ' ' </tmp/$node)" >/tmp/answer
done
request $write $vbd/state 1 >/tmp/answer
check "the disk is attached" appears
mount -t ext4 /dev/xvda /disk
check "disk read after that" remounted
umount /disk

# Many small requests: the host looks how many of them made exits.
dd if=/dev/xvda of=/dev/null bs=4k count=1024 iflag=direct 2>/dev/null
echo "guest: requests: $(awk '{ print $1 + $5 }' /sys/block/xvda/stat)"
grep -E "xen|HYP" /proc/interrupts
echo "guest: done"
poweroff -f
