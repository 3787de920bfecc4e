//! Kernels with a Multiboot header (Multiboot Specification 0.6.96): teaching kernels, and Xen.

mod elf32;
mod header;
mod information;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::machine::layout::{HIGH_RAM, Layout};

pub(super) use header::{Header, SEARCHED};
pub(super) use information::write_information;

/// What EAX holds when the kernel is entered (§3.2).
pub const LOADED: u32 = 0x2bad_b002;

/// Why an image with a header could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum MultibootError {
    /// It demands something that is not there.
    #[error("its Multiboot header demands what this loader has not: flags {0:#x}")]
    Demands(u32),
    /// The addresses in the header contradict each other.
    #[error("the addresses in its Multiboot header make no sense")]
    Addresses,
    /// It is no 32-bit x86 executable, and its header has no addresses.
    #[error("it is neither a 32-bit x86 ELF file nor has its Multiboot header addresses")]
    NotElf32,
    /// More program headers than are believed.
    #[error("it has {0} program headers")]
    Segments(u16),
    /// It does not fit.
    #[error("{len} bytes at {start:#x} are not in low memory from 1 MiB on")]
    Place {
        /// Where they want to be.
        start: u64,
        /// How many they are.
        len: u64,
    },
    /// It could not be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It could not be read into memory.
    #[error(transparent)]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// A part of the file, and where it goes.
#[derive(Clone, Copy, Debug)]
struct Segment {
    /// Where it is in the file.
    offset: u64,
    /// Its physical address.
    address: u64,
    /// How much of it is in the file.
    in_file: u64,
    /// How much room it takes. The rest is zero, as memory that nobody wrote.
    in_memory: u64,
}

/// What has to be loaded.
struct Plan {
    segments: Vec<Segment>,
    entry: u32,
}

/// Where a kernel was loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Loaded {
    /// First instruction.
    pub(super) entry: u32,
    /// First address after it.
    pub(super) end: u64,
}

/// Loads the kernel in `file`, of which `header` is the header, to where it wants to be.
pub(super) fn load(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    header: &Header,
    file: &mut File,
) -> Result<Loaded, MultibootError> {
    header.check_demands()?;
    let size = file.metadata()?.len();
    let plan = match header.plan(size)? {
        Some(plan) => plan,
        None => elf32::plan(file)?,
    };
    let mut end = HIGH_RAM;
    for segment in plan.segments {
        let Segment {
            offset,
            address,
            in_file,
            in_memory,
        } = segment;
        let len = in_memory.max(in_file);
        let outside = || MultibootError::Place {
            start: address,
            len,
        };
        let last = address
            .checked_add(len)
            .filter(|last| address >= HIGH_RAM && *last <= layout.low_ram_end())
            .ok_or_else(outside)?;
        file.seek(SeekFrom::Start(offset))?;
        let bytes = usize::try_from(in_file).map_err(|_| outside())?;
        memory.read_exact_volatile_from(GuestAddress(address), file, bytes)?;
        end = end.max(last);
    }
    Ok(Loaded {
        entry: plan.entry,
        end,
    })
}
