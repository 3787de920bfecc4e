//! The start info of the PVH boot protocol (Xen, docs/misc/pvh.pandoc; public/arch-x86/hvm/start_info.h).

use linux_loader::loader::elf::start_info::{
    hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{BOOT_INFO, BootError, CMDLINE, Initrd};
use crate::machine::layout::Layout;

const MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const VERSION: u32 = 1;
/// Where the module list is.
const MODULES: GuestAddress = GuestAddress(0x7100);
/// Where the memory map is.
const MEMORY_MAP: GuestAddress = GuestAddress(0x7200);

pub(super) fn write_start_info(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<(), BootError> {
    let mut entries = 0u32;
    let mut at = MEMORY_MAP.0;
    for entry in layout.map() {
        let record = hvm_memmap_table_entry {
            addr: entry.range.start,
            size: entry.range.end.saturating_sub(entry.range.start),
            type_: entry.kind.e820_type(),
            reserved: 0,
        };
        memory.write_obj(record, GuestAddress(at))?;
        at = at.saturating_add(size_of_val(&record) as u64);
        entries = entries.saturating_add(1);
    }
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry {
            paddr: initrd.start,
            size: initrd.size,
            ..Default::default()
        };
        memory.write_obj(module, MODULES)?;
    }
    let start_info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: initrd.map_or(0, |_| MODULES.0),
        cmdline_paddr: CMDLINE.0,
        rsdp_paddr: rsdp,
        memmap_paddr: MEMORY_MAP.0,
        memmap_entries: entries,
        ..Default::default()
    };
    memory.write_obj(start_info, BOOT_INFO)?;
    Ok(())
}
