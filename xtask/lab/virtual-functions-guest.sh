# init of a guest behind an IOMMU whose network card, reference-vmm's, is a physical function with 3 virtual ones: `guest: WHAT: RESULT`
# lines, as in guest-init.sh. The host is 192.168.77.1 at the card's cable and 192.168.80.1, .81.1 and .82.1 at the virtual functions'.
load_drivers
dmesg -n 1 # no message of the kernel amid these lines

devices=/sys/bus/pci/devices
pf=$(dirname "$(readlink -f /sys/class/net/eth0/device)")
[ -e "$pf/sriov_totalvfs" ] || dmesg | grep -E "$(basename "$pf")|$(basename "$(dirname "$pf")")"
check "three functions are offered" [ "$(cat "$pf/sriov_totalvfs")" = 3 ]
ip addr add 192.168.77.2/24 dev eth0
ip link set eth0 up
check "ping" ping -q -c 3 -W 5 192.168.77.1

enable() { echo "$1" >"$pf/sriov_numvfs" 2>/dev/null; }
refused() { ! enable "$1"; }
functions() { ls -d "$pf"/virtfn* 2>/dev/null | wc -l; }
# The network interface of virtual function N.
interface() { ls "$pf/virtfn$1/"virtio*/net 2>/dev/null; }
has() { # has N: so many virtual functions, each with an interface
    for _ in $(seq 100); do
        [ "$(functions)" = "$1" ] && [ "$(ls -d "$pf"/virtfn*/virtio*/net/* 2>/dev/null | wc -l)" = "$1" ] && return 0
        sleep 0.1
    done
    dmesg | tail -n 20
    return 1
}
group() { basename "$(readlink "$1/iommu_group")"; }
apart() { # what there is of the card, and the port above, are in as many groups
    groups=$(for function in "$pf" "$pf/.." "$pf"/virtfn*; do group "$function"; done)
    [ "$(echo "$groups" | sort -u | wc -l)" = $(($(functions) + 2)) ]
}
up() { # up N
    ip addr add "192.168.8$1.2/24" dev "$(interface "$1")"
    ip link set "$(interface "$1")" up
}
reaches() { ping -q -c 2 -W 5 "192.168.8$1.1" >/dev/null; }
traffic() { # traffic N: there and back
    up "$1"
    reaches "$1" || return 1
    echo "guest: download sum: $(wget -q -O - "http://192.168.8$1.1:8080/blob" | sum)"
    nc "192.168.8$1.1" "900$1" </written
    echo "guest: frames of function $1: $(cat "/sys/class/net/$(interface "$1")/statistics/rx_packets") $(cat "/sys/class/net/$(interface "$1")/statistics/tx_packets")"
}
address() { cat "/sys/class/net/$(interface "$1")/address"; }

check "four are refused" refused 4
check "enable 2" enable 2
check "two appear" has 2
sleep 1 # the host counts threads
check "each has a group of its own" apart
check "each has an address of its own" [ "$(cat /sys/class/net/eth*/address | sort -u | wc -l)" = 3 ]
dd if=/dev/urandom of=/written bs=64k count=16 2>/dev/null
echo "guest: upload sum: $(sum </written)"
check "traffic of function 0" traffic 0
check "traffic of function 1" traffic 1

# Disabled with I/O in flight.
wget -q -O /dev/null http://192.168.80.1:8080/long &
sleep 0.5
check "disable" enable 0
check "they disappear" [ "$(functions)" = 0 ]
kill %1 2>/dev/null
sleep 1 # the host counts threads
check "ping after that" ping -q -c 1 -W 5 192.168.77.1

check "enable 3" enable 3
check "three appear" has 3
check "each has a group of its own again" apart
up 2
check "function 2 reaches its host" reaches 2
check "a change of the number is refused" refused 1
enable 0

check "enable 1" enable 1
check "one appears" has 1
up 0
check "function 0 reaches its host again" reaches 0
mac=$(address 0)
function=$(basename "$(readlink -f "$pf/virtfn0")")
echo "$function" >"$devices/$function/driver/unbind"
echo vfio-pci >"$devices/$function/driver_override"
echo "$function" >/sys/bus/pci/drivers_probe
timeout 60 vf "$function" "$mac" 2>&1
echo "$function" >"$devices/$function/driver/unbind"
echo >"$devices/$function/driver_override"
echo "$function" >/sys/bus/pci/drivers_probe
has 1
up 0
check "its driver has it back" reaches 0
check "disable at last" enable 0
check "ping at last" ping -q -c 1 -W 5 192.168.77.1

dmesg | grep -iE "DMAR.*(fault|request)" | sed 's/^/guest: kernel log: /'
echo "guest: $function was told to go astray"
echo "guest: done"
poweroff -f
