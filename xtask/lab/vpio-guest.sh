#!/bin/busybox sh
# init of a guest that drives old devices of the host itself, behind models of them: `guest: WHAT: RESULT` lines, as in guest-init.sh. The
# host is 192.168.81.1 to the first card, .82.1 and .83.1 to the others.
#
# On the command line: the checksums of what is downloaded, lab.small= and lab.large=; with lab.phase= the first card does nothing but
# this (none, session, small or large) after it was found to answer; or lab.hostile, for a guest that has no drivers and the memory from
# 128 MiB on to itself.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
check() { # check WHAT COMMAND…
    what=$1
    shift
    if "$@"; then
        echo "guest: $what: ok"
    else
        echo "guest: $what: FAILED"
        return 1
    fi
}
sum() { sha256sum | cut -c1-64; }
devices=/sys/bus/pci/devices
# named ID: the function with this vendor and device.
named() {
    for device in "$devices"/*; do
        [ "$(cat "$device/vendor" "$device/device" | xargs)" = "$1" ] && echo "$device"
    done
}
# bar FUNCTION N: where a BAR is.
bar() { sed -n "$(($2 + 1))s/ .*//p" "$1/resource"; }

if grep -q lab.hostile /proc/cmdline; then
    ring=0x8000000
    outside=0x70000000
    # Lets it decode its BARs and master the bus.
    enable() {
        echo 1 >"$1/enable"
        printf '\007\000' | dd of="$1/config" bs=1 seek=4 conv=notrunc 2>/dev/null
    }
    # descriptors FIRST SECOND THIRD FOURTH: one, in memory.
    descriptor() {
        for word in "$@"; do
            devmem $((ring + at)) 32 $((word))
            at=$((at + 4))
        done
    }
    card=$(named "0x10ec 0x8139")
    enable "$card"
    regs=$(bar "$card" 1)
    at=0
    descriptor 0xf0000040 0 $outside 0
    devmem $((regs + 0x37)) 8 0x10
    devmem $((regs + 0xe0)) 16 3
    devmem $((regs + 0x20)) 32 $ring
    devmem $((regs + 0x24)) 32 0
    devmem $((regs + 0x37)) 8 4
    devmem $((regs + 0xd9)) 8 0x40

    card=$(named "0x8086 0x100e")
    enable "$card"
    regs=$(bar "$card" 0)
    at=0
    descriptor $outside 0 0x0b000040 0
    devmem $((regs + 0x3800)) 32 $ring
    devmem $((regs + 0x3804)) 32 0
    devmem $((regs + 0x3808)) 32 128
    devmem $((regs + 0x0400)) 32 2
    # A part of a register is none.
    devmem $((regs + 0x3818)) 8 1
    devmem $((regs + 0x3818)) 32 1

    card=$(named "0x8086 0x2922")
    enable "$card"
    regs=$(bar "$card" 5)
    devmem $((regs + 4)) 32 0x80000000
    devmem $((regs + 0x108)) 32 $outside
    devmem $((regs + 0x10c)) 32 0
    devmem $((regs + 0x118)) 32 0x16
    sleep 1
    echo "guest: done"
    poweroff -f
fi

for module in $(cat /modules/order); do
    insmod "/modules/$module" || echo "guest: cannot load $module"
done
soon() { # soon COMMAND…: it succeeds within half a minute
    for _ in $(seq 25); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.2
    done
    return 1
}
drivers="ne2k-pci 8139cp e1000"
phase=
for word in $(cat /proc/cmdline); do
    case $word in
    lab.phase=*) phase=${word#*=} drivers=ne2k-pci ;;
    lab.small=*) small=${word#*=} ;;
    lab.large=*) large=${word#*=} ;;
    esac
done
during() { # during PHASE COMMAND…: unless there is another one only
    [ -n "$phase" ] && [ "$phase" != "$1" ] && return
    shift
    "$@"
}
has() { [ "$(wget -q -O - "http://$1:8080/$2" | sum)" = "$3" ]; }
net=81
for driver in $drivers; do
    interface=
    for found in /sys/class/net/*; do
        [ "$(basename "$(readlink "$found/device/driver")")" = $driver ] && interface=$(basename "$found")
    done
    check "$driver finds its card" [ -n "$interface" ]
    ip addr add 192.168.$net.2/24 dev "$interface"
    ip link set "$interface" up
    # As the host does.
    [ $driver = ne2k-pci ] && arp -s 192.168.81.1 52:54:00:12:34:54
    if ! check "$driver: answers" soon ping -q -c 1 -W 1 192.168.$net.1; then
        cat /proc/interrupts
        ifconfig "$interface"
        dmesg | grep -E '0000:00:1[5-8]|eth[0-9]' | sed 's/^/guest: kernel log: /'
        poweroff -f
    fi
    during session check "$driver: session" ping -q -c 20 -i 0.1 -W 5 192.168.$net.1
    during small check "$driver: small download" has 192.168.$net.1 small "$small"
    during large check "$driver: large download" has 192.168.$net.1 large "$large"
    ip link set "$interface" down
    net=$((net + 1))
done
if [ -n "$phase" ]; then
    echo "guest: done"
    poweroff -f
fi

check "ahci finds its disk" soon [ -b /dev/sda ]
make() { mke2fs /dev/sda >/dev/null; }
check "make a file system" make
mkdir /disk
check "mount" mount -t ext4 /dev/sda /disk
dd if=/dev/urandom of=/disk/written bs=64k count=32 2>/dev/null
written=$(sum </disk/written)
umount /disk
mount -t ext4 /dev/sda /disk
again() { [ "$(sum </disk/written)" = "$written" ]; }
check "read again" again
umount /disk
cat /proc/interrupts
dmesg | grep -E '0000:00:1[5-8]|ata[0-9]|eth[0-9]' | sed 's/^/guest: kernel log: /'
echo "guest: done"
poweroff -f
