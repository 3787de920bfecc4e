# Runs with its root on the first disk of a guest that sees Xen, and that has another one and a network interface of Xen's: `guest: WHAT:
# RESULT` lines, as in guest-init.sh.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t tmpfs tmp /tmp

said() { dmesg | grep -q "$1"; }
check "the hypervisor is Xen" said "Hypervisor detected: Xen HVM"
check "it is version 4.10" said "Xen version 4.10"
check "events come by vectors of the vCPUs" said "Xen HVM callback vector for event delivery is enabled"

check "its root is on xvda" grep -q '^/dev/xvda / ext4' /proc/mounts

# What xen-utils' programs read in the store.
shows() { # shows PATH PATTERN
    xenstore-ls -f "$1" >/tmp/tree && grep -q "$2" /tmp/tree && return
    cat /tmp/tree
    return 1
}
check "xenstore-ls shows its disk" shows device '^device/vbd/51712/state = "4"'
check "xenstore-ls shows the whole store" shows / '^/local/domain/0/backend/vif/1/0/feature-rx-copy = "1"'

appears() {
    for _ in $(seq 100); do
        [ -b /dev/xvdb ] && return 0
        sleep 0.1
    done
    return 1
}
check "xen-blkfront finds the disk" appears
check "it has persistent grants and indirect descriptors" said "xvdb: .*persistent grants: enabled; indirect descriptors: enabled"
check "mount" mount -t ext4 /dev/xvdb /disk
if grep -q lab.reboot /proc/cmdline && [ ! -e /disk/rebooted ]; then
    touch /disk/rebooted
    umount /disk
    mount -o remount,ro /
    reboot -f
fi
disk_read() { (cd /disk && sha256sum -s -c SHA256SUMS); }
check "disk read" disk_read
dd if=/dev/urandom of=/disk/written bs=64k count=32 2>/dev/null
written=$(sum </disk/written)
umount /disk
mount -t ext4 /dev/xvdb /disk
remounted() { [ "$(sum </disk/written)" = "$written" ]; }
check "disk write" remounted
echo "guest: disk sum: $written"
verified /disk/fio
rm /disk/fio

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
vbd=device/vbd/51728
gone() {
    for _ in $(seq 100); do
        [ -b /dev/xvdb ] || return 0
        sleep 0.1
    done
    return 1
}
nodes="backend backend-id virtual-device device-type"
for node in $nodes; do
    xenstore-read $vbd/$node >/tmp/$node
done
xenstore-rm $vbd
check "the disk is detached" gone
for node in $nodes; do
    xenstore-write $vbd/$node "$(cat /tmp/$node)"
done
xenstore-write $vbd/state 1
check "the disk is attached" appears
mount -t ext4 /dev/xvdb /disk
check "disk read after that" remounted
umount /disk

# Many small requests: the host looks how many of them made exits.
dd if=/dev/xvdb of=/dev/null bs=4k count=1024 iflag=direct 2>/dev/null
echo "guest: requests: $(cat /sys/block/xvd[ab]/stat | awk '{ sum += $1 + $5 } END { print sum }')"
grep -E "xen|HYP" /proc/interrupts
mount -o remount,ro /
echo "guest: done"
poweroff -f
