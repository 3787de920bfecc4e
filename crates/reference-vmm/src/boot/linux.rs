//! The zero page of Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst, zero-page.rst).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::{BOOT_INFO, BootError, CMDLINE, Initrd};
use crate::machine::layout::Layout;

/// Offset of the 64-bit entry point from where the kernel is loaded.
pub(super) const ENTRY_64: u64 = 0x200;

/// `xloadflags`: the kernel has a 64-bit entry point.
const XLF_KERNEL_64: u16 = 1 << 0;
/// `type_of_loader`: none of those that have a number.
const LOADER_UNDEFINED: u8 = 0xff;

pub(super) fn enters_in_64_bit(header: &setup_header) -> bool {
    header.version >= 0x20c && header.xloadflags & XLF_KERNEL_64 != 0
}

/// The first address that the kernel leaves alone while it unpacks itself.
pub(super) fn end_of_kernel(header: &setup_header, loaded_end: u64) -> u64 {
    let unpacked = header.pref_address.saturating_add(header.init_size.into());
    unpacked.max(loaded_end)
}

pub(super) fn write_zero_page(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    header: setup_header,
    initrd: Option<Initrd>,
    rsdp: u64,
) -> Result<(), BootError> {
    let mut params = boot_params {
        hdr: header,
        acpi_rsdp_addr: rsdp,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = low_half(CMDLINE.0);
    if let Some(initrd) = initrd {
        params.hdr.ramdisk_image = low_half(initrd.start);
        params.hdr.ramdisk_size = low_half(initrd.size);
        params.ext_ramdisk_image = low_half(initrd.start >> 32);
        params.ext_ramdisk_size = low_half(initrd.size >> 32);
    }
    let map = layout.map();
    for (slot, entry) in params.e820_table.iter_mut().zip(&map) {
        *slot = boot_e820_entry {
            addr: entry.range.start,
            size: entry.range.end.saturating_sub(entry.range.start),
            r#type: entry.kind.e820_type(),
        };
        params.e820_entries = params.e820_entries.saturating_add(1);
    }
    memory.write_obj(params, BOOT_INFO)?;
    Ok(())
}

/// Bits 31 to 0.
fn low_half(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
