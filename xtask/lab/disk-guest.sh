# init of a guest that drives disks and a network card of the host itself: `guest: WHAT: RESULT` lines, as in guest-init.sh. The host,
# which has another card at the same cable, is 192.168.78.1.
#
# On the command line: lab.plain for the one that makes the file systems; lab.behind for the one behind an IOMMU, which has no NVMe disk.
load_drivers
soon() { # soon COMMAND…: it succeeds within ten seconds
    for _ in $(seq 100); do
        "$@" && return 0
        sleep 0.1
    done
    return 1
}
# How the kernel says that it gets a device's interrupts.
interrupts_by() { grep "$1" /proc/interrupts | grep -q "$2"; }

# disk NAME DEVICE: makes a file system and reads what it wrote.
disk() {
    check "$1 finds the disk" soon [ -b "$2" ]
    make() { mke2fs "$1" >/dev/null; }
    check "$1: make a file system" make "$2"
    mkdir "/$1"
    check "$1: mount" mount -t ext4 "$2" "/$1"
    dd if=/dev/urandom of="/$1/written" bs=64k count=$3 2>/dev/null
    written=$(sum <"/$1/written")
    umount "/$1"
    mount -t ext4 "$2" "/$1"
    again() { [ "$(sum <"/$1/written")" = "$written" ]; }
    check "$1: read again" again "$1"
    umount "/$1"
    echo "guest: $1 sum: $written"
}
if grep -q lab.plain /proc/cmdline; then
    disk NVMe /dev/nvme0n1 64
    disk AHCI /dev/sda 32
    echo "guest: requests and interrupts: $(awk '{ print $1 + $5 }' /sys/block/nvme0n1/stat) $(awk '/nvme0q/ { sum += $2 } END { print sum }' /proc/interrupts)"
    pin="IO-APIC.*fasteoi"
    message=PCI-MSI
else
    check "AHCI finds the disk" soon [ -b /dev/sda ]
    mkdir /AHCI
    check "AHCI: mount" mount -t ext4 -o ro /dev/sda /AHCI
    echo "guest: AHCI sum: $(sum </AHCI/written)"
    pin="IR-IO-APIC.*fasteoi"
    message=IR-PCI-MSI
fi
check "AHCI has MSI" interrupts_by ahci "$message"

ip addr add 192.168.78.2/24 dev eth0
ip link set eth0 up
link() { [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; }
check "link" soon link
check "the card has a pin" interrupts_by eth0 "$pin"
check "ping" ping -q -c 3 -W 5 192.168.78.1
interrupts() { awk '/eth0/ { for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) sum += $i } END { print sum + 0 }' /proc/interrupts; }
frames() { cat /sys/class/net/eth0/statistics/rx_packets /sys/class/net/eth0/statistics/tx_packets | awk '{ sum += $1 } END { print sum }'; }
dd if=/dev/urandom of=/written bs=64k count=16 2>/dev/null
interrupts_before=$(interrupts)
frames_before=$(frames)
echo "guest: transfer begins"
sleep 1 # the host counts exits from now on
downloaded=$(wget -q -O - http://192.168.78.1:8080/blob | sum)
nc 192.168.78.1 9000 </written
echo "guest: frames and interrupts: $(($(frames) - frames_before)) $(($(interrupts) - interrupts_before))"
echo "guest: download: $downloaded"
echo "guest: upload: $(sum </written)"
cat /proc/interrupts
echo "guest: done"
poweroff -f
