# Runs in the lab's host: the same guest with the same disk, as one of Xen's under reference-vmm and under QEMU, and as virtio's. For each
# stretch a line `host: NAME: DEPTH REQUESTS INTERRUPTS CENTISECONDS EXITS KICKS`.
#
# VMM     reference-vmm and its arguments, but for the disk
# KERNEL  the guest's, as among the arguments
# INITRD  the same
# WORK    a folder for what is not kept
set -u
mkdir -p "$WORK"
head -c 33554432 /dev/urandom >"$WORK/disk.img"

# KVM's counts: exits to user space but those for ports, which are the serial port's; MMIO writes outside the APIC's page; events that
# the guest sends (EVTCHNOP_send).
events=/sys/kernel/tracing/events/kvm
echo 'hist:keys=reason if reason != 2' >$events/kvm_userspace_exit/trigger
echo 'hist:keys=type if type == 2 && (gpa < 0xfee00000 || gpa > 0xfeefffff)' >$events/kvm_mmio/trigger
echo 'hist:keys=nr if nr == 32 && a0 == 4' >$events/kvm_xen_hypercall/trigger
hits() { sed -n 's/.*Hits: *//p' "$events/$1/hist"; }
counts() { echo "$(hits kvm_userspace_exit) $(($(hits kvm_mmio) + $(hits kvm_xen_hypercall)))"; }

return=$(printf '\r') # a terminal's lines end with it
run() { # run NAME COMMAND…
    name=$1
    shift
    before=
    timeout -k 5 120 "$@" </dev/null 2>&1 | while IFS= read -r line; do
        printf '%s\n' "$line"
        # shellcheck disable=SC2086 # words
        set -- ${line%"$return"}
        case $line in
        "guest: depth "*begins*) before=$(counts) ;;
        "guest: depth "*ends:*)
            depth=$3
            shift 4
            work=$*
            # shellcheck disable=SC2046,SC2086 # words
            set -- $before $(counts)
            echo "host: $name: $depth $work $(($3 - $1)) $(($4 - $2))"
            ;;
        esac
    done
}
run ours-xen sh -c "exec $VMM --xen --disk $WORK/disk.img,pv=xen"
run qemu-xen qemu-system-x86_64 -M q35 -accel kvm,xen-version=0x4000a,kernel-irqchip=split -cpu host,+xen-vapic -smp 1 -m 256M \
    -nodefaults -no-user-config -display none -no-reboot -serial stdio -kernel "$KERNEL" -initrd "$INITRD" \
    -append "console=ttyS0 quiet panic=-1" -drive "file=$WORK/disk.img,if=xen,format=raw"
run ours-virtio sh -c "exec $VMM --disk $WORK/disk.img"
