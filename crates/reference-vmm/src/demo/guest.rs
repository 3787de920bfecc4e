//! The demo's guest: a driver for virtio-blk over PCI in plain 32-bit integer code, so that a KVM that interprets
//! instructions runs it too. Entered like a PVH kernel: flat segments, no paging, interrupts off.
#![expect(unsafe_code, reason = "declares the image that the assembler makes")]

use std::arch::global_asm;

use crate::devices::{keyboard, power, serial};
use crate::machine::layout::PCI_WINDOW_32;

/// Size of the image; the assembler refuses a longer one.
const SIZE: usize = 2048;
/// Where the image runs.
pub(super) const LOAD: u32 = 0x20_0000;

/// Sectors that the guest reads and compares with [`word`].
pub(super) const SECTORS: u32 = 32;
/// The sector that it writes and reads back.
pub(super) const SCRATCH: u32 = 40;
/// What it multiplies a sector's number by.
const FACTOR: u32 = 0x9e37_79b1;

/// Word `index` of sector `sector` as both sides know it; the sector that is written holds the complement.
pub(super) fn word(sector: u32, index: u32) -> u32 {
    sector.wrapping_mul(FACTOR).wrapping_add(index)
}

/// The image.
pub(super) fn image() -> &'static [u8] {
    &DEMO_GUEST
}

// SAFETY: the assembler below defines the symbol as that many initialized read-only bytes.
unsafe extern "C" {
    safe static DEMO_GUEST: [u8; SIZE];
}

global_asm!(
    r#"
    .pushsection .rodata.demo_guest, "a"
    .balign 16
    .globl DEMO_GUEST

    # Memory that the guest uses, all zero at first.
    .set demo_desc,   0x300000
    .set demo_avail,  0x300100
    .set demo_used,   0x300200
    .set demo_header, 0x300300
    .set demo_status, 0x300310
    .set demo_common, 0x300320      # address of the common configuration
    .set demo_notify, 0x300324      # address of the doorbell
    .set demo_factor, 0x300328      # notify_off_multiplier
    .set demo_irqs,   0x30032c      # interrupts taken
    .set demo_data,   0x301000
    .set demo_idt,    0x302000
    .set demo_stack,  0x310000
    .set demo_vector, 0x40

    .macro demo_print from, to
    movl $(\from - DEMO_GUEST + {load}), %esi
    movl $(\to - \from), %ecx
    movw ${serial}, %dx
    rep outsb
    .endm

    .code32
DEMO_GUEST:
    cld
    movl $demo_stack, %esp
    movb $0xff, %al                 # no interrupts from the legacy controllers
    outb %al, $0x21
    outb %al, $0xa1
    movl $(.Ldemo_irq - DEMO_GUEST + {load}), %eax
    movl %eax, %edx
    andl $0xffff, %eax
    orl $0x00100000, %eax           # code segment 0x10
    movl %eax, demo_idt + demo_vector * 8
    andl $0xffff0000, %edx
    orl $0x8e00, %edx               # present, 32-bit interrupt gate
    movl %edx, demo_idt + demo_vector * 8 + 4
    lidt (.Ldemo_idtr - DEMO_GUEST + {load})
    movl $0x1ff, 0xfee000f0         # local APIC on, spurious vector 0xff

    # Find the block device, place its BARs, let it decode and master the bus.
    movl $0x80000000, %ebx
.Ldemo_device:
    addl $0x800, %ebx
    cmpl $0x80010000, %ebx
    je .Ldemo_failed
    xorl %eax, %eax
    call .Ldemo_pci_read
    cmpl $0x10421af4, %eax
    jne .Ldemo_device
    movl $0x10, %eax
    movl ${bar}, %ecx
    call .Ldemo_pci_write
    movl $0x14, %eax
    xorl %ecx, %ecx
    call .Ldemo_pci_write
    movl $0x18, %eax
    movl ${bar} + 0x10000, %ecx
    call .Ldemo_pci_write
    movl $0x1c, %eax
    xorl %ecx, %ecx
    call .Ldemo_pci_write
    movl $0x04, %eax
    movl $0x6, %ecx
    call .Ldemo_pci_write
    demo_print .Ldemo_found, .Ldemo_found_end

    # Walk the capabilities: virtio's structures and MSI-X.
    movl $0x34, %eax
    call .Ldemo_pci_read
    movzbl %al, %edi
.Ldemo_capability:
    testl %edi, %edi
    jz .Ldemo_set_up
    movl %edi, %eax
    call .Ldemo_pci_read
    movl %eax, %esi
    cmpb $0x09, %al
    je .Ldemo_virtio
    cmpb $0x11, %al
    je .Ldemo_msix
.Ldemo_next:
    movl %esi, %eax
    movzbl %ah, %edi
    jmp .Ldemo_capability

.Ldemo_virtio:
    shrl $24, %eax                  # cfg_type
    movl %eax, %ebp
    leal 4(%edi), %eax
    call .Ldemo_pci_read
    call .Ldemo_bar
    pushl %eax
    leal 8(%edi), %eax
    call .Ldemo_pci_read
    popl %ecx
    addl %ecx, %eax
    cmpl $1, %ebp
    je .Ldemo_virtio_common
    cmpl $2, %ebp
    jne .Ldemo_next
    movl %eax, demo_notify
    leal 16(%edi), %eax
    call .Ldemo_pci_read
    movl %eax, demo_factor
    jmp .Ldemo_next
.Ldemo_virtio_common:
    movl %eax, demo_common
    jmp .Ldemo_next

.Ldemo_msix:
    leal 4(%edi), %eax
    call .Ldemo_pci_read
    movl %eax, %ebp
    call .Ldemo_bar
    andl $0xfffffff8, %ebp
    addl %ebp, %eax
    movl $0xfee00000, (%eax)        # to this processor
    movl $0, 4(%eax)
    movl $demo_vector, 8(%eax)
    movl $0, 12(%eax)
    movl %esi, %ecx
    orl $0x80000000, %ecx           # MSI-X enable
    movl %edi, %eax
    call .Ldemo_pci_write
    jmp .Ldemo_next

    # Virtio 1.3, section 3.1.1.
.Ldemo_set_up:
    movl demo_common, %ebp
    testl %ebp, %ebp
    jz .Ldemo_failed
    movb $0, 20(%ebp)               # reset
    movb $1, 20(%ebp)               # ACKNOWLEDGE
    movb $3, 20(%ebp)               # DRIVER
    movl $0, 8(%ebp)
    movl $0, 12(%ebp)
    movl $1, 8(%ebp)
    movl $1, 12(%ebp)               # VIRTIO_F_VERSION_1
    movb $0xb, 20(%ebp)             # FEATURES_OK
    testb $8, 20(%ebp)
    jz .Ldemo_failed
    movw $0, 22(%ebp)               # queue 0
    movw $8, 24(%ebp)               # 8 descriptors
    movw $0, 26(%ebp)               # vector 0
    cmpw $0, 26(%ebp)
    jne .Ldemo_failed
    movl $demo_desc, 32(%ebp)
    movl $0, 36(%ebp)
    movl $demo_avail, 40(%ebp)
    movl $0, 44(%ebp)
    movl $demo_used, 48(%ebp)
    movl $0, 52(%ebp)
    movzwl 30(%ebp), %eax
    imull demo_factor, %eax
    addl %eax, demo_notify
    movw $1, 28(%ebp)               # enable
    movb $0xf, 20(%ebp)             # DRIVER_OK

    # Read the sectors that the host filled.
    xorl %edi, %edi
.Ldemo_read:
    xorl %eax, %eax
    movl %edi, %ecx
    call .Ldemo_request
    call .Ldemo_first
.Ldemo_compare:
    cmpl %eax, demo_data(,%ecx,4)
    jne .Ldemo_failed
    incl %eax
    incl %ecx
    cmpl $128, %ecx
    jne .Ldemo_compare
    incl %edi
    cmpl ${sectors}, %edi
    jne .Ldemo_read

    # Write one and read it back.
    movl ${scratch}, %edi
    call .Ldemo_first
.Ldemo_fill:
    movl %eax, %edx
    notl %edx
    movl %edx, demo_data(,%ecx,4)
    incl %eax
    incl %ecx
    cmpl $128, %ecx
    jne .Ldemo_fill
    movl $1, %eax
    movl %edi, %ecx
    call .Ldemo_request
    xorl %ecx, %ecx
.Ldemo_forget:
    movl $0, demo_data(,%ecx,4)
    incl %ecx
    cmpl $128, %ecx
    jne .Ldemo_forget
    xorl %eax, %eax
    movl %edi, %ecx
    call .Ldemo_request
    call .Ldemo_first
.Ldemo_check:
    movl demo_data(,%ecx,4), %edx
    notl %edx
    cmpl %eax, %edx
    jne .Ldemo_failed
    incl %eax
    incl %ecx
    cmpl $128, %ecx
    jne .Ldemo_check

    # The doorbell was answered by interrupts, the last of which may still be pending.
    sti
    nop
    cli
    cmpl $0, demo_irqs
    je .Ldemo_failed
    demo_print .Ldemo_done, .Ldemo_done_end
    movb ${power_off}, %al
    movw ${sleep}, %dx
    outb %al, %dx
.Ldemo_halt:
    hlt
    jmp .Ldemo_halt

.Ldemo_failed:
    demo_print .Ldemo_bad, .Ldemo_bad_end
    movb ${reset}, %al
    outb %al, ${keyboard}
    jmp .Ldemo_halt

    # The first word of sector EDI in EAX, zero in ECX.
.Ldemo_first:
    imull ${factor}, %edi, %eax
    xorl %ecx, %ecx
    ret

    # Makes a request of type EAX for sector ECX and waits for its interrupt.
.Ldemo_request:
    movl %eax, demo_header
    movl %ecx, demo_header + 8
    movb $0xff, demo_status
    movl $demo_header, demo_desc
    movl $16, demo_desc + 8
    movl $0x00010001, demo_desc + 12    # NEXT, 1
    movl $demo_data, demo_desc + 16
    movl $512, demo_desc + 24
    movl $0x00020003, demo_desc + 28    # NEXT and WRITE, 2
    testl %eax, %eax
    jz .Ldemo_offer
    movl $0x00020001, demo_desc + 28    # NEXT, 2
.Ldemo_offer:
    movl $demo_status, demo_desc + 32
    movl $1, demo_desc + 40
    movl $2, demo_desc + 44             # WRITE
    movzwl demo_avail + 2, %edx
    movl %edx, %eax
    andl $7, %eax
    movw $0, demo_avail + 4(,%eax,2)
    incl %edx
    movw %dx, demo_avail + 2
    movl demo_notify, %eax
    movw $0, (%eax)
.Ldemo_wait:
    cli
    movw demo_used + 2, %ax
    cmpw demo_avail + 2, %ax
    je .Ldemo_answered
    sti
    hlt
    jmp .Ldemo_wait
.Ldemo_answered:
    cmpb $0, demo_status
    jne .Ldemo_failed
    ret

.Ldemo_irq:
    incl demo_irqs
    movl $0, 0xfee000b0             # end of interrupt
    pushl 8(%esp)                   # KVM interprets no IRET in protected mode
    popfl
    ret $8                          # over the code segment, which is the same, and the flags

    # Register EAX of the function in EBX, to EAX.
.Ldemo_pci_read:
    orl %ebx, %eax
    movw $0xcf8, %dx
    outl %eax, %dx
    movw $0xcfc, %dx
    inl %dx, %eax
    ret

    # ECX to register EAX of the function in EBX.
.Ldemo_pci_write:
    orl %ebx, %eax
    movw $0xcf8, %dx
    outl %eax, %dx
    movl %ecx, %eax
    movw $0xcfc, %dx
    outl %eax, %dx
    ret

    # Where the BAR is whose number is in bits 2:0 of EAX.
.Ldemo_bar:
    andl $7, %eax
    leal 0x10(,%eax,4), %eax
    call .Ldemo_pci_read
    andl $0xfffffff0, %eax
    ret

    .balign 4
.Ldemo_idtr:
    .word 256 * 8 - 1
    .long demo_idt
.Ldemo_found:
    .ascii "guest: found virtio-blk on PCI\r\n"
.Ldemo_found_end:
.Ldemo_done:
    .ascii "guest: {sectors} sectors read, one written and read back, all as expected\r\n"
.Ldemo_done_end:
.Ldemo_bad:
    .ascii "guest: FAILED\r\n"
.Ldemo_bad_end:
    .org DEMO_GUEST + {size}, 0
    .code64
    .popsection
    "#,
    load = const LOAD,
    size = const SIZE,
    sectors = const SECTORS,
    scratch = const SCRATCH,
    factor = const FACTOR,
    serial = const serial::BASE,
    bar = const PCI_WINDOW_32.start,
    sleep = const power::CONTROL,
    power_off = const power::POWER_OFF,
    keyboard = const keyboard::COMMAND,
    reset = const keyboard::RESET,
    options(att_syntax),
);
