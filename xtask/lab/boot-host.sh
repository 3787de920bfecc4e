# The host's side of `boot`: prepares a disk and a tap, runs the VMM, then checks what the guest
# left on the disk and sent over the network, one `host: WHAT: RESULT` line each.
#
# VMM      the VMM's command line; its standard output is the guest's serial port
# BACKENDS command lines, one a line, of what serves its vhost-user devices, at sockets WORK/*.sock
# DISK     the disk image to make
# RESULTS  a folder for what is kept
# BOUND    seconds that the VMM may take
# and what network-host.sh needs
set -u
clean_up() {
    # shellcheck disable=SC2086 # words
    kill $backends 2>/dev/null
    disconnect_network
}
backends=''
trap clean_up EXIT

mkdir -p "$WORK/root"
head -c 2097152 /dev/urandom >"$WORK/root/pattern"
(cd "$WORK/root" && sha256sum pattern >SHA256SUMS)
truncate -s 32M "$DISK"
check "make the disk" mkfs.ext4 -q -F -d "$WORK/root" "$DISK"

connect_network

while IFS= read -r backend; do
    [ -n "$backend" ] || continue
    sh -c "exec $backend" &
    backends="$backends $!"
done <<EOF
$BACKENDS
EOF
listening() {
    # shellcheck disable=SC2086 # words
    set -- $backends
    for _ in $(seq 100); do
        [ "$(find "$WORK" -name '*.sock' | wc -l)" = $# ] && return 0
        sleep 0.1
    done
    return 1
}
[ -z "$backends" ] || check "the backends listen" listening

# KVM's own counts, of exits to user space by reason and of MMIO writes (kicks among them) outside
# the APIC's page by address. Setting a trigger anew starts at 0.
events=/sys/kernel/tracing/events/kvm
count() { # count EVENT TRIGGER
    [ -e $events/"$1" ] || return 0
    echo "!hist:$2" >$events/"$1"/trigger 2>/dev/null
    echo "hist:$2" >$events/"$1"/trigger
}
count kvm_userspace_exit 'keys=reason'
count kvm_mmio 'keys=gpa.hex if type == 2 && (gpa < 0xfee00000 || gpa > 0xfeefffff)'
exits() { [ ! -e $events ] || grep '^{' $events/kvm_userspace_exit/hist >"$RESULTS/exits-$1"; }
mark() { # mark WORK WHEN: user-space exits for MMIO and MMIO writes so far
    exits mark
    mmio=$(sed -n 's/.*reason: *6 } hitcount: *//p' "$RESULTS/exits-mark")
    cp $events/kvm_mmio/hist "$RESULTS/mmio-$1-$2"
    writes=$(sed -n 's/ *Hits: //p' "$RESULTS/mmio-$1-$2")
    echo "$1 $2 ${mmio:-0} ${writes:-0}" >>"$RESULTS/marks"
}
# What the VMM keeps in memory beyond the guest's RAM (mappings of 64 MiB and more), in KiB.
resident() {
    awk '/^Size:/ { size = $2 } /^Rss:/ && size < 65536 { sum += $2 } END { print sum }' \
        "/proc/$(cat "$WORK/pid")/smaps"
}
now() { cut -d ' ' -f 1 /proc/uptime; }

start=$(now)
return=$(printf '\r') # a terminal's lines end with it
{
    timeout -k 5 "$BOUND" sh -c "echo \$\$ >$WORK/pid; exec $VMM" </dev/null 2>&1
    echo "host: vmm status: $?"
} | while IFS= read -r line; do
    printf '%s\n' "$line"
    line=${line%"$return"}
    case $line in
    "guest: init:"*)
        # Not of a guest that has rebooted.
        [ -e "$RESULTS/exits-init" ] || exits init
        echo "host: init seen: $start $(now)"
        ;;
    "guest: io "*)
        # shellcheck disable=SC2086 # words: guest: io NAME begins|ends: …
        set -- $line
        mark "$3" "${4%:}"
        ;;
    "guest: done"*)
        exits end
        echo "host: resident: $(resident) KiB beyond the guest's memory"
        cat "/proc/$(cat "$WORK/pid")/smaps" >"$RESULTS/smaps"
        ;;
    esac
done | tee "$RESULTS/guest.log"

reported() { sed -n "s/^guest: $1: \([0-9a-f]*\).*/\1/p" "$RESULTS/guest.log"; }
e2fsck -fn "$DISK" >"$RESULTS/fsck.log" 2>&1
check "fsck" [ $? = 0 ]
debugfs -R "dump /written $WORK/written" "$DISK" 2>/dev/null
written=$(reported "disk sum")
check "the disk holds what the guest wrote" same "$written" "$(sum <"$WORK/written")"
check "the upload arrived" same "$written" "$(sum <"$WORK/uploaded")"
check "the download arrived" same "$(reported "download sum")" "$(sum <"$WORK/www/blob")"
check "the console was written" grep -q "hello from the guest" "$RESULTS/console.txt"
exit $failed
