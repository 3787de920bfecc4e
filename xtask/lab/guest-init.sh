# init of the guest (L2): does real I/O on every device and reports it on the serial port, one
# `guest: WHAT: RESULT` line each, for boot-host.sh and xtask to check.
read -r uptime rest </proc/uptime
echo "guest: init: $uptime s after the kernel's start"
sleep 1 # the host takes its counts
load_drivers

echo "guest: kernel: $(uname -r), $(nproc) cpus"

# Block: what the host wrote is there; what we write survives a remount.
mkdir /disk
check "mount" mount -t ext4 /dev/vda /disk
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
mount -t ext4 /dev/vda /disk
remounted() { [ "$(sum </disk/written)" = "$written" ]; }
check "disk write" remounted
echo "guest: disk sum: $written"

# Network: ping, a download and an upload.
ip addr add 192.168.77.2/24 dev eth0
ip link set eth0 up
check "ping" ping -q -c 3 -W 5 192.168.77.1
echo "guest: download sum: $(wget -q -O - http://192.168.77.1:8080/blob | sum)"
upload() { nc 192.168.77.1 9000 </disk/written; }
check "upload" upload

# Console and entropy.
console() { [ -c /dev/hvc0 ] && echo "hello from the guest" >/dev/hvc0; }
check "console" console
echo "guest: rng: $(cat /sys/class/misc/hw_random/rng_current) $(head -c 16 /dev/hwrng | xxd -p)"

umount /disk

# The device to learn from, if there is one.
edu=$(grep -l 0x11e8 /sys/bus/pci/devices/*/device)
if [ -n "$edu" ] && [ -e /dev/vfio/vfio ]; then
    edu=${edu%/device}
    echo vfio-pci >"$edu/driver_override"
    echo "${edu##*/}" >/sys/bus/pci/drivers_probe
    dmesg -n 1 # no message of the kernel amid these lines
    timeout 60 edu "${edu##*/}" 2>&1
fi

# Asked to be measured: the host counts exits and kicks between these marks, we count interrupts.
interrupts() {
    awk '/virtio/ { for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) sum += $i } END { print sum + 0 }' /proc/interrupts
}
requests() { awk '{ print $1 + $5 }' /sys/block/vda/stat; }
packets() { cat /sys/class/net/eth0/statistics/rx_packets; }
measure() { # measure NAME COUNTER COMMAND…
    name=$1
    counter=$2
    shift 2
    echo "guest: io $name begins"
    sleep 1
    done_before=$($counter)
    interrupts_before=$(interrupts)
    "$@"
    done_after=$($counter)
    interrupts_after=$(interrupts)
    sleep 1
    echo "guest: io $name ends: $((done_after - done_before)) $((interrupts_after - interrupts_before))"
}
download() { wget -q -O /dev/null http://192.168.77.1:8080/blob; }
if grep -q lab.measure /proc/cmdline; then
    measure block-depth-1 requests random-read /dev/vda 1 1024
    measure block-depth-32 requests random-read /dev/vda 32 1024
    measure net-download packets download
fi

# What the kernel says of IOMMUs: xtask looks for faults, among others.
dmesg | grep -iE 'DMAR|iommu|x2apic' | sed 's/^/guest: kernel log: /'
cat /proc/interrupts
echo "guest: done"
sleep 1 # the host takes its counts
poweroff -f
