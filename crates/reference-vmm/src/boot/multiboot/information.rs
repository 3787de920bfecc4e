use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, IntoBytes};

use crate::boot::{BOOT_INFO, CMDLINE, Initrd};
use crate::machine::layout::{CONVENTIONAL_END, HIGH_RAM, Layout};

/// Where the list of modules is.
const MODULES: GuestAddress = GuestAddress(0x7100);
/// Where the memory map is.
const MEMORY_MAP: GuestAddress = GuestAddress(0x7200);
/// Where the loader's name is.
const NAME: GuestAddress = GuestAddress(0x7f00);

/// Flags (§3.3): which fields hold.
const HAS_MEMORY: u32 = 1 << 0;
const HAS_CMDLINE: u32 = 1 << 2;
const HAS_MODULES: u32 = 1 << 3;
const HAS_MEMORY_MAP: u32 = 1 << 6;
const HAS_NAME: u32 = 1 << 9;

/// The information (§3.3) up to the loader's name; what would follow is absent by its flags.
#[derive(Default, Immutable, IntoBytes)]
#[repr(C)]
struct Information {
    flags: U32,
    mem_lower: U32,
    mem_upper: U32,
    boot_device: U32,
    cmdline: U32,
    mods_count: U32,
    mods_addr: U32,
    syms: [U32; 4],
    mmap_length: U32,
    mmap_addr: U32,
    drives: [U32; 2],
    config_table: U32,
    boot_loader_name: U32,
}

#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct Module {
    start: U32,
    end: U32,
    string: U32,
    reserved: U32,
}

#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct MapEntry {
    /// Size of the rest.
    size: U32,
    base: U64,
    length: U64,
    kind: U32,
}

/// Writes what the kernel is told: memory, command line, and `initrd` as its module.
pub(in crate::boot) fn write_information(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    initrd: Option<Initrd>,
) -> Result<(), GuestMemoryError> {
    let mut map = Vec::new();
    for entry in layout.map() {
        let entry = MapEntry {
            size: 20.into(),
            base: entry.range.start.into(),
            length: entry.range.end.saturating_sub(entry.range.start).into(),
            kind: entry.kind.e820_type().into(),
        };
        map.extend_from_slice(entry.as_bytes());
    }
    memory.write_slice(&map, MEMORY_MAP)?;
    if let Some(Initrd { start, size }) = initrd {
        let module = Module {
            start: below_4g(start),
            end: below_4g(start.saturating_add(size)),
            string: 0.into(),
            reserved: 0.into(),
        };
        memory.write_slice(module.as_bytes(), MODULES)?;
    }
    memory.write_slice(b"reference-vmm\0", NAME)?;
    let modules = if initrd.is_some() { HAS_MODULES } else { 0 };
    let kib = |bytes: u64| below_4g(bytes / 1024);
    let information = Information {
        flags: (HAS_MEMORY | HAS_CMDLINE | HAS_MEMORY_MAP | HAS_NAME | modules).into(),
        mem_lower: kib(CONVENTIONAL_END),
        mem_upper: kib(layout.low_ram_end().saturating_sub(HIGH_RAM)),
        cmdline: below_4g(CMDLINE.0),
        mods_count: u32::from(initrd.is_some()).into(),
        mods_addr: below_4g(MODULES.0),
        mmap_length: below_4g(map.len() as u64),
        mmap_addr: below_4g(MEMORY_MAP.0),
        boot_loader_name: below_4g(NAME.0),
        ..Information::default()
    };
    memory.write_slice(information.as_bytes(), BOOT_INFO)
}

/// Everything here lies below the PCI hole.
fn below_4g(value: u64) -> U32 {
    u32::try_from(value).unwrap_or(u32::MAX).into()
}
