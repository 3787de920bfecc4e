# init of a guest that drives a network card of the host itself: `guest: WHAT: RESULT` lines, as in guest-init.sh. The host, which has
# another card at the same cable, is 192.168.78.1.
#
# On the command line: lab.first for the one that is measured; lab.behind for the one behind an IOMMU, which also reboots; lab.peer for
# the one that others talk to, 192.168.78.3, after a reboot; lab.compared for those of two VMMs (assigned-host.sh); nothing of this for that of the book's page.
load_drivers

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
if ! grep -q lab /proc/cmdline; then
    check "the page's guest has a link" link
    poweroff -f
fi
reached() { ping -q -c 3 -W 5 "$1"; }
if ! check "ping" reached 192.168.78.1; then
    dmesg | grep -E 'igb|0000:00:18' | sed 's/^/guest: kernel log: /'
    cat /proc/interrupts
    poweroff -f
fi

if is peer; then
    if ! wget -q -O /dev/null http://192.168.78.1:8080/peer-rebooted; then
        echo "guest: the peer reboots"
        sleep 1
        reboot -f
    fi
    mkdir /www
    dd if=/dev/urandom of=/www/blob bs=64k count=16 2>/dev/null
    echo "guest: peer's sum: $(sum </www/blob)"
    httpd -f -p 8080 -h /www
fi
if is behind; then
    if wget -q -O /dev/null http://192.168.78.1:8080/rebooted; then
        echo "guest: done"
        poweroff -f
    fi
    translated() { grep -q DMA "$(readlink -f /sys/class/net/eth0/device)/iommu_group/type"; }
    check "the function's DMA is translated" translated
    remapped() { grep eth0 /proc/interrupts | grep -q IR-PCI-MSIX; }
    check "its interrupts are remapped" remapped
    dd if=/dev/urandom of=/written bs=64k count=16 2>/dev/null
    echo "guest: translated transfer begins"
    sleep 1
    echo "guest: translated download: $(wget -q -O - http://192.168.78.1:8080/small | sum)"
    nc 192.168.78.1 9001 </written
    sleep 1
    echo "guest: translated upload: $(sum </written)"
    # The function writes how far it sent (82576 VF, TDWBAL) to where nothing is mapped.
    bar=$(head -c 18 "$(readlink -f /sys/class/net/eth0/device)/resource")
    # The kernel leaves that page of its memory alone (memmap=).
    devmem 0x5a5a000 32 0x600df00d
    devmem $((bar + 0x3838)) 32 $((0x5a5a000 | 1))
    ping -q -c 1 -W 5 192.168.78.1
    devmem $((bar + 0x3838)) 32 0
    check "alive after a blocked write" reached 192.168.78.1
    check "the memory there is unchanged" [ "$(devmem 0x5a5a000 32)" = 0x600DF00D ]
    ip link set eth0 down
    echo "guest: interface down"
    sleep 2
    echo "guest: reboots"
    reboot -f
fi

interrupts() { awk '/eth0/ { for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) sum += $i } END { print sum + 0 }' /proc/interrupts; }
packets() { cat /sys/class/net/eth0/statistics/rx_packets /sys/class/net/eth0/statistics/tx_packets | awk '{ sum += $1 } END { print sum }'; }
if is compared; then
    dd if=/dev/urandom of=/written bs=64k count=16 2>/dev/null
    packets_before=$(packets)
    echo "guest: compared transfer begins"
    sleep 1 # the host counts from now on, until it has what is sent to it
    wget -q -O /blob http://192.168.78.1:8080/small
    nc 192.168.78.1 9000 </written
    sleep 1
    echo "guest: compared upload: $(sum </written)"
    echo "guest: compared frames: $(($(packets) - packets_before))"
    echo "guest: done"
    poweroff -f
fi

check "peer" soon ping -q -c 1 -W 2 192.168.78.3
soon wget -q -O /blob http://192.168.78.3:8080/blob
echo "guest: sum from the peer: $(sum </blob)"

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
