# init of a guest whose root lies on the disk that `lab.root=` names: this part finds it, the script /init on it goes on.
load_drivers
disk=$(sed 's/.*lab.root=\([^ ]*\).*/\1/' /proc/cmdline)
for _ in $(seq 100); do
    [ -b "$disk" ] && break
    sleep 0.1
done
mkdir -p /root
mount -t ext4 "$disk" /root || echo "guest: mount: FAILED"
for folder in proc sys dev; do
    mount --move /$folder /root/$folder
done
exec switch_root /root /bin/busybox sh /init
