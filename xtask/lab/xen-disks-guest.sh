# init of a guest that reads from its only disk, whatever drives it, at each of two depths: `guest: depth N begins`, then
# `guest: depth N ends: REQUESTS INTERRUPTS CENTISECONDS`.
load_drivers
for _ in $(seq 100); do
    disk=$(cd /sys/block && ls -d vda xvda 2>/dev/null)
    [ -b "/dev/$disk" ] && break
    sleep 0.1
done
echo "guest: disk: $disk"
requests() { awk '{ print $1 }' "/sys/block/$disk/stat"; }
interrupts() {
    awk '/blkif|virtio.*req/ { for (i = 2; i <= NF; i++) if ($i ~ /^[0-9]+$/) sum += $i } END { print sum + 0 }' /proc/interrupts
}
now() { sed 's/ .*//; s/\.//' /proc/uptime; }
random-read "/dev/$disk" 32 2048 # what is done once is done
for depth in 1 32 1 32; do
    echo "guest: depth $depth begins"
    sleep 1 # the host takes its counts
    requests_before=$(requests)
    interrupts_before=$(interrupts)
    before=$(now)
    random-read "/dev/$disk" $depth 4096
    after=$(now)
    echo "guest: depth $depth ends: $(($(requests) - requests_before)) $(($(interrupts) - interrupts_before)) $((after - before))"
    sleep 1
done
echo "guest: done"
poweroff -f
