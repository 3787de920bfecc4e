# Runs with its root on a vhost-user disk. fio verifies what it writes there. Then four writers write files of known contents, each
# written and synchronized before it is acknowledged here, while the disk's backend is killed and started again; then all that was
# acknowledged is read back from the disk.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t tmpfs tmp /tmp
echo "guest: root: $(grep -c '^/dev/vda / ext4' /proc/mounts)"

# What is sent comes back: the card's cable ends where it begins.
ip addr add 192.168.78.1/24 dev eth0
ip link set eth0 up
ping -q -c 3 -W 1 192.168.78.2 >/dev/null 2>&1
echo "guest: frames: $(cat /sys/class/net/eth0/statistics/tx_packets) $(cat /sys/class/net/eth0/statistics/rx_packets)"

verified /fio

writer() {
    for number in $(seq 1 "$2"); do
        name=$1.$number
        # 64 KiB that begin with the name and repeat it.
        yes "$name" | head -c 65536 >/tmp/block.$1
        dd if=/tmp/block.$1 of=/data/$name bs=16k conv=fsync 2>/dev/null || echo "guest: $name: FAILED"
        echo "$name" >>/tmp/acknowledged.$1
        [ $((number % 5)) = 0 ] && echo "guest: wrote $name"
    done
}
FILES=$(sed 's/.*files=\([0-9]*\).*/\1/' /proc/cmdline)
mkdir -p /data
for number in 1 2 3 4; do
    writer $number "$FILES" &
done
wait
sync
echo 3 >/proc/sys/vm/drop_caches
lost=0
for name in $(cat /tmp/acknowledged.*); do
    wanted=$(yes "$name" | head -c 65536 | sha256sum)
    [ "$(sha256sum <"/data/$name")" = "$wanted" ] || lost=$((lost + 1))
done
echo "guest: acknowledged: $(cat /tmp/acknowledged.* | wc -l), lost: $lost"
mount -o remount,ro /
poweroff -f
