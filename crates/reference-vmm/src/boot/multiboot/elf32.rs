//! 32-bit ELF executables (System V ABI, Intel386 supplement), which are what Multiboot kernels are.

use std::io::{Read, Seek, SeekFrom};

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, FromZeros, IntoBytes, KnownLayout};

use super::{MultibootError, Plan, Segment};

/// Magic number, 32 bits, little-endian, version 1.
const IDENTITY: [u8; 7] = *b"\x7fELF\x01\x01\x01";
/// `EM_386`.
const MACHINE: u16 = 3;
/// `PT_LOAD`.
const LOAD: u32 = 1;
/// More program headers than this are not believed.
const LIMIT: u16 = 64;

#[derive(FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
struct FileHeader {
    identity: [u8; 7],
    padding: [u8; 9],
    kind: U16,
    machine: U16,
    version: U32,
    entry: U32,
    program_headers: U32,
    section_headers: U32,
    flags: U32,
    size: U16,
    program_header_size: U16,
    program_header_count: U16,
    section_header_size: U16,
    section_header_count: U16,
    names: U16,
}

#[derive(FromBytes, IntoBytes, KnownLayout)]
#[repr(C)]
struct ProgramHeader {
    kind: U32,
    offset: U32,
    virtual_address: U32,
    physical_address: U32,
    in_file: U32,
    in_memory: U32,
    flags: U32,
    align: U32,
}

/// What the program headers ask for. The entry point is a virtual address; paging is off, so it is turned into a physical one.
pub(super) fn plan(file: &mut (impl Read + Seek)) -> Result<Plan, MultibootError> {
    file.rewind()?;
    let mut header = FileHeader::new_zeroed();
    file.read_exact(header.as_mut_bytes())?;
    if header.identity != IDENTITY
        || header.machine.get() != MACHINE
        || usize::from(header.program_header_size.get()) != size_of::<ProgramHeader>()
    {
        return Err(MultibootError::NotElf32);
    }
    let count = header.program_header_count.get();
    if count > LIMIT {
        return Err(MultibootError::Segments(count));
    }
    file.seek(SeekFrom::Start(header.program_headers.get().into()))?;
    let mut entry = header.entry.get();
    let mut segments = Vec::new();
    for _ in 0..count {
        let mut program = ProgramHeader::new_zeroed();
        file.read_exact(program.as_mut_bytes())?;
        if program.kind.get() != LOAD {
            continue;
        }
        let into = header
            .entry
            .get()
            .wrapping_sub(program.virtual_address.get());
        if into < program.in_memory.get() {
            entry = program.physical_address.get().wrapping_add(into);
        }
        segments.push(Segment {
            offset: program.offset.get().into(),
            address: program.physical_address.get().into(),
            in_file: program.in_file.get().into(),
            in_memory: program.in_memory.get().into(),
        });
    }
    Ok(Plan { segments, entry })
}
