# init of a guest that drives old devices of the host itself, behind models of them: `guest: WHAT: RESULT` lines, as in guest-init.sh. The
# host is 192.168.81.1 to the first card, .82.1 and .83.1 to the others.
#
# On the command line: the checksums of what is downloaded, lab.small= and lab.large=; with lab.phase= the first card does nothing but
# this (none, session, small or large) after it was found to answer; or lab.hostile, for a guest whose program `hostile` has the
# devices and the memory from 128 MiB on to itself, and reads lab.control.
if grep -q lab.hostile /proc/cmdline; then
    hostile
    sleep 1
    echo "guest: done"
    poweroff -f
fi

load_drivers
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
