//! The state a vCPU starts in.

use kvm_bindings::{CpuId, Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::boot::{Entry, MULTIBOOT_LOADED};
use crate::kvm::{KvmError, Vcpu};

/// Where the descriptor table of the boot protocols is.
const GDT: GuestAddress = GuestAddress(0x500);
/// Where the identity-mapping page tables are: one page for each level.
const PAGE_MAP: GuestAddress = GuestAddress(0x9000);
const PAGE_DIRECTORY_POINTERS: GuestAddress = GuestAddress(0xa000);
const PAGE_DIRECTORY: GuestAddress = GuestAddress(0xb000);

/// Selectors of the boot protocols: code, data, task state.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// Segment types (Intel SDM vol. 3A, tables 3-1 and 3-2).
const EXECUTE_READ_ACCESSED: u8 = 0xb;
const READ_WRITE_ACCESSED: u8 = 0x3;
const TSS_BUSY: u8 = 0xb;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// Page-table entry: present and writable; and in the directory, a 2 MiB page.
const PRESENT_WRITABLE: u64 = 0x3;
const LARGE_PAGE: u64 = 1 << 7;

/// The bit of RFLAGS that is always set.
const RFLAGS_RESERVED: u64 = 1 << 1;

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1 << 0;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, and without any that says otherwise all memory is write-back.
const MTRR_ENABLE_WRITE_BACK: u64 = 1 << 11 | 6;

/// Why a vCPU could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The boot tables could not be written.
    #[error("guest memory: {0}")]
    Guest(#[from] vm_memory::GuestMemoryError),
}

/// Sets up a vCPU: its CPUID leaves, its model-specific registers, and for the first one where it enters the guest. The others
/// wait for the guest to start them.
pub fn prepare(
    vcpu: &Vcpu,
    cpuid: &CpuId,
    memory: &GuestMemoryMmap,
    entry: Option<Entry>,
) -> Result<(), StartError> {
    vcpu.set_cpuid2(cpuid)
        .map_err(KvmError::call("set the CPUID leaves"))?;
    let msr = |index, data| kvm_msr_entry {
        index,
        data,
        ..Default::default()
    };
    let msrs = [
        msr(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING),
        msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLE_WRITE_BACK),
    ];
    // Both are conveniences that a host may not have: the list ends at the first that it refuses.
    if let Ok(msrs) = Msrs::from_entries(&msrs) {
        vcpu.set_msrs(&msrs)
            .map_err(KvmError::call("set model-specific registers"))?;
    }
    let fpu = kvm_fpu {
        fcw: 0x37f,
        mxcsr: 0x1f80,
        ..Default::default()
    };
    vcpu.set_fpu(&fpu)
        .map_err(KvmError::call("set the floating-point state"))?;
    let Some(entry) = entry else {
        return Ok(());
    };
    let regs = match entry {
        Entry::Linux64 { rip, boot_params } => kvm_regs {
            rip,
            rsi: boot_params,
            rflags: RFLAGS_RESERVED,
            ..Default::default()
        },
        Entry::Multiboot { rip, information } => kvm_regs {
            rip,
            rax: MULTIBOOT_LOADED.into(),
            rbx: information,
            rflags: RFLAGS_RESERVED,
            ..Default::default()
        },
        Entry::Pvh { rip, start_info } => kvm_regs {
            rip,
            rbx: start_info,
            rflags: RFLAGS_RESERVED,
            ..Default::default()
        },
    };
    vcpu.set_regs(&regs)
        .map_err(KvmError::call("set the registers"))?;
    set_segments(vcpu, memory, matches!(entry, Entry::Linux64 { .. }))
}

fn set_segments(vcpu: &Vcpu, memory: &GuestMemoryMmap, long: bool) -> Result<(), StartError> {
    let segment = |selector, type_, long: bool| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        db: u8::from(!long),
        l: u8::from(long),
        ..Default::default()
    };
    let code = segment(CODE, EXECUTE_READ_ACCESSED, long);
    let data = segment(DATA, READ_WRITE_ACCESSED, false);
    let task = kvm_segment {
        limit: 0x67,
        selector: TASK,
        type_: TSS_BUSY,
        present: 1,
        ..Default::default()
    };
    let gdt = [
        0,
        0,
        descriptor(&code),
        descriptor(&data),
        descriptor(&task),
    ];
    for (entry, index) in gdt.into_iter().zip(0u64..) {
        memory.write_obj(entry, GuestAddress(GDT.0 + index * 8))?;
    }
    let mut sregs = vcpu
        .get_sregs()
        .map_err(KvmError::call("read the segment registers"))?;
    sregs.gdt.base = GDT.0;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = code;
    for register in [
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ss,
    ] {
        *register = data;
    }
    sregs.tr = task;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    if long {
        identity_map(memory)?;
        sregs.cr0 |= CR0_PG;
        sregs.cr3 = PAGE_MAP.0;
        sregs.cr4 = CR4_PAE;
        sregs.efer |= EFER_LME | EFER_LMA;
    }
    vcpu.set_sregs(&sregs)
        .map_err(KvmError::call("set the segment registers"))?;
    Ok(())
}

/// Maps the first gibibyte onto itself, as the 64-bit boot protocol asks for the kernel, the zero page and the command line.
fn identity_map(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    memory.write_obj(PAGE_DIRECTORY_POINTERS.0 | PRESENT_WRITABLE, PAGE_MAP)?;
    memory.write_obj(PAGE_DIRECTORY.0 | PRESENT_WRITABLE, PAGE_DIRECTORY_POINTERS)?;
    for index in 0..512u64 {
        let page = index << 21 | LARGE_PAGE | PRESENT_WRITABLE;
        memory.write_obj(page, GuestAddress(PAGE_DIRECTORY.0 + index * 8))?;
    }
    Ok(())
}

/// The descriptor that would load `segment` (Intel SDM vol. 3A, figure 3-8).
fn descriptor(segment: &kvm_segment) -> u64 {
    let bits = |value: u8, at: u32| u64::from(value) << at;
    let limit = if segment.g == 1 {
        u64::from(segment.limit >> 12)
    } else {
        u64::from(segment.limit)
    };
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | bits(segment.type_, 40)
        | bits(segment.s, 44)
        | bits(segment.dpl, 45)
        | bits(segment.present, 47)
        | (limit >> 16 & 0xf) << 48
        | bits(segment.avl, 52)
        | bits(segment.l, 53)
        | bits(segment.db, 54)
        | bits(segment.g, 55)
        | (segment.base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_the_boot_protocols() {
        let flat = |type_, long: bool| kvm_segment {
            limit: u32::MAX,
            type_,
            present: 1,
            s: 1,
            g: 1,
            db: u8::from(!long),
            l: u8::from(long),
            ..Default::default()
        };
        assert_eq!(descriptor(&flat(0xb, true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&flat(0xb, false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&flat(0x3, false)), 0x00cf_9300_0000_ffff);
    }
}
