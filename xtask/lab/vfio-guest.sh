#!/bin/busybox sh
# init of a guest that drives a network card of the host itself: `guest: WHAT: RESULT` lines, as in guest-init.sh. The host, which has
# another card at the same cable, is 192.168.78.1.
#
# On the command line: lab.again for only ping, reboot, ping, power off; lab.peer for the one that others talk to, 192.168.78.3.
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
    if "$@"; then
        echo "guest: $what: ok"
    else
        echo "guest: $what: FAILED"
        return 1
    fi
}
sum() { sha256sum | cut -c1-64; }

found() { [ "$(cat /sys/class/net/eth0/device/vendor /sys/class/net/eth0/device/device | xargs)" = "0x8086 0x10ca" ]; }
check "igbvf finds the function" found
is() { grep -q "lab.$1" /proc/cmdline; }
is peer && number=3 || number=2
ip addr add 192.168.78.$number/24 dev eth0
ip link set eth0 up
soon() { # soon COMMAND…: it succeeds within a minute
    for _ in $(seq 300); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 0.2
    done
    return 1
}
link() { [ "$(cat /sys/class/net/eth0/carrier)" = 1 ]; }
check "link" soon link
reached() { ping -q -c 3 -W 5 "$1"; }
if ! check "ping" reached 192.168.78.1; then
    dmesg | grep -E 'igb|0000:00:18' | sed 's/^/guest: kernel log: /'
    cat /proc/interrupts
    poweroff -f
fi

if is peer; then
    mkdir /www
    dd if=/dev/urandom of=/www/blob bs=64k count=16 2>/dev/null
    echo "guest: peer's sum: $(sum </www/blob)"
    httpd -f -p 8080 -h /www
fi
if is again; then
    if wget -q -O /dev/null http://192.168.78.1:8080/rebooted; then
        echo "guest: done"
        poweroff -f
    fi
    echo "guest: reboots"
    sleep 1
    reboot -f
fi

check "peer" soon reached 192.168.78.3
soon wget -q -O /blob http://192.168.78.3:8080/blob
echo "guest: sum from the peer: $(sum </blob)"

interrupts() { awk '/eth0/ { for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) sum += $i } END { print sum + 0 }' /proc/interrupts; }
packets() { cat /sys/class/net/eth0/statistics/rx_packets /sys/class/net/eth0/statistics/tx_packets | awk '{ sum += $1 } END { print sum }'; }
dd if=/dev/urandom of=/written bs=64k count=64 2>/dev/null
interrupts_before=$(interrupts)
packets_before=$(packets)
echo "guest: transfer begins"
sleep 2 # the host counts exits from now on, until it has what is sent to it
downloaded=$(wget -q -O - http://192.168.78.1:8080/blob | sum)
nc 192.168.78.1 9000 </written
sleep 2
echo "guest: download sum: $downloaded"
echo "guest: upload sum: $(sum </written)"
echo "guest: packets and interrupts: $(($(packets) - packets_before)) $(($(interrupts) - interrupts_before))"
cat /proc/interrupts
dmesg | grep igb | sed 's/^/guest: kernel log: /'
echo "guest: done"
# The host kills the VMM while the function has work.
while :; do wget -q -O /dev/null http://192.168.78.1:8080/blob || sleep 1; done
