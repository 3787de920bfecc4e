//! Puts a kernel into guest memory and says how the first vCPU enters it.

mod linux;
mod multiboot;
mod pvh;

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::PathBuf;

use linux_loader::loader::elf::PvhBootCapability;
use linux_loader::loader::{BzImage, Elf, KernelLoader};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub use multiboot::{LOADED as MULTIBOOT_LOADED, MultibootError};

use crate::machine::layout::{HIGH_RAM, Layout};

/// Where the command line is, terminated by a zero byte.
const CMDLINE: GuestAddress = GuestAddress(0x2_0000);
/// Space for the command line.
const CMDLINE_LIMIT: usize = 0x1_0000;
/// Where the zero page or the PVH start info is.
const BOOT_INFO: GuestAddress = GuestAddress(0x7000);

/// How an ELF file begins, and its class for 32 bits.
const MAGIC: [u8; 4] = *b"\x7fELF";
const ELF_32_BITS: u8 = 1;

/// A file that was opened, with the name that error messages give it.
#[derive(Debug)]
pub struct Image {
    file: File,
    path: PathBuf,
}

impl Image {
    /// Opens `path` for reading.
    pub fn open(path: impl Into<PathBuf>, what: &'static str) -> Result<Self, BootError> {
        let path = path.into();
        let failed = |source| BootError::Open {
            what,
            path: path.clone(),
            source,
        };
        let file = File::open(&path).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        Ok(Self { file, path })
    }
}

/// What is booted.
#[derive(Debug)]
pub enum Payload {
    /// A kernel from a file.
    Linux(Linux),
    /// Bytes that are entered at their start like a PVH kernel: in 32-bit mode without paging.
    Flat {
        /// The bytes.
        image: Vec<u8>,
        /// Where they go.
        address: u32,
    },
}

/// A kernel, mostly Linux, and what it is given.
#[derive(Debug)]
pub struct Linux {
    /// A bzImage, an ELF kernel with a PVH entry point, or a kernel with a Multiboot header.
    pub kernel: Image,
    /// The initial RAM disk.
    pub initrd: Option<Image>,
    /// The kernel's command line.
    pub cmdline: String,
}

/// How the first vCPU enters the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// In 64-bit mode with RSI at the zero page (Linux, Documentation/arch/x86/boot.rst, 64-bit boot protocol).
    Linux64 {
        /// First instruction.
        rip: u64,
        /// The zero page.
        boot_params: u64,
    },
    /// In 32-bit mode without paging, with EBX at the start info (Xen, docs/misc/pvh.pandoc).
    Pvh {
        /// First instruction.
        rip: u64,
        /// The start info.
        start_info: u64,
    },
    /// In 32-bit mode without paging, with EAX at [`MULTIBOOT_LOADED`] and EBX at the information (Multiboot 0.6.96 §3.2).
    Multiboot {
        /// First instruction.
        rip: u64,
        /// The information.
        information: u64,
    },
}

/// Why the guest's software could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file could not be opened.
    #[error("cannot open the {what} {}: {source}", path.display())]
    Open {
        /// What the file is for.
        what: &'static str,
        /// Its name.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file could not be read into guest memory.
    #[error("cannot load the {what} {}: {reason}", path.display())]
    Load {
        /// What the file is for.
        what: &'static str,
        /// Its name.
        path: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// A kernel with a Multiboot header could not be loaded.
    #[error("cannot load the kernel {}: {source}", path.display())]
    Multiboot {
        /// Its name.
        path: PathBuf,
        /// What went wrong.
        source: MultibootError,
    },
    /// The kernel has none of the formats that can be booted.
    #[error("{} is not a kernel for this machine: {reason}", .path.display())]
    Format {
        /// Its name.
        path: PathBuf,
        /// What is missing.
        reason: &'static str,
    },
    /// The command line is longer than the kernel takes.
    #[error("the command line has {length} bytes, the kernel takes {limit}")]
    CommandLine {
        /// Its length.
        length: usize,
        /// The kernel's limit.
        limit: usize,
    },
    /// The guest has not enough memory.
    #[error(
        "the {what} needs {needed} bytes of memory below the PCI hole, the guest has {available}"
    )]
    Memory {
        /// What does not fit.
        what: &'static str,
        /// How much it needs.
        needed: u64,
        /// How much there is.
        available: u64,
    },
    /// Boot data could not be written.
    #[error("guest memory: {0}")]
    Guest(#[from] vm_memory::GuestMemoryError),
}

/// Loads `payload` and writes what the kernel is told; `rsdp` is where the ACPI tables start.
pub fn load(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    payload: Payload,
    rsdp: u64,
) -> Result<Entry, BootError> {
    match payload {
        Payload::Linux(linux) => load_linux(memory, layout, linux, rsdp),
        Payload::Flat { image, address } => {
            memory.write_slice(&image, GuestAddress(address.into()))?;
            pvh::write_start_info(memory, layout, None, rsdp)?;
            Ok(Entry::Pvh {
                rip: address.into(),
                start_info: BOOT_INFO.0,
            })
        }
    }
}

fn load_linux(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    mut payload: Linux,
    rsdp: u64,
) -> Result<Entry, BootError> {
    let kernel = &mut payload.kernel;
    let mut beginning = Vec::new();
    (&mut kernel.file)
        .take(multiboot::SEARCHED as u64)
        .read_to_end(&mut beginning)
        .and_then(|_| kernel.file.rewind())
        .map_err(|reason| BootError::Load {
            what: "kernel",
            path: kernel.path.clone(),
            reason: reason.to_string(),
        })?;
    if beginning.len() < MAGIC.len() {
        return Err(BootError::Format {
            path: kernel.path.clone(),
            reason: "it is too short",
        });
    }
    let is_elf64 = beginning.starts_with(&MAGIC) && beginning.get(4) != Some(&ELF_32_BITS);
    if !is_elf64 && let Some(header) = multiboot::Header::find(&beginning) {
        return load_multiboot(memory, layout, payload, &header);
    }
    if beginning.starts_with(&MAGIC) {
        if !is_elf64 {
            return Err(BootError::Format {
                path: kernel.path.clone(),
                reason: "it is a 32-bit ELF file without a Multiboot header",
            });
        }
        return load_pvh(memory, layout, payload, rsdp);
    }
    let loaded = BzImage::load(memory, Some(GuestAddress(HIGH_RAM)), &mut kernel.file, None)
        .map_err(|error| match error {
            linux_loader::loader::Error::Bzimage(
                linux_loader::loader::bzimage::Error::InvalidBzImage,
            ) => BootError::Format {
                path: kernel.path.clone(),
                reason: "it is neither a bzImage nor an ELF file",
            },
            error => load_failed(kernel, error),
        })?;
    let header = loaded.setup_header.unwrap_or_default();
    if !linux::enters_in_64_bit(&header) {
        return Err(BootError::Format {
            path: kernel.path.clone(),
            reason: "it has no 64-bit entry point",
        });
    }
    let limit = usize::try_from(header.cmdline_size).unwrap_or(usize::MAX);
    write_cmdline(memory, &payload.cmdline, limit.min(CMDLINE_LIMIT - 1))?;
    let end = linux::end_of_kernel(&header, loaded.kernel_end);
    let highest = u64::from(header.initrd_addr_max);
    let initrd = load_initrd(memory, layout, &mut payload, end, highest)?;
    linux::write_zero_page(memory, layout, header, initrd, rsdp)?;
    Ok(Entry::Linux64 {
        rip: loaded.kernel_load.0 + linux::ENTRY_64,
        boot_params: BOOT_INFO.0,
    })
}

fn load_pvh(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    mut payload: Linux,
    rsdp: u64,
) -> Result<Entry, BootError> {
    let kernel = &mut payload.kernel;
    let loaded = Elf::load(memory, None, &mut kernel.file, None)
        .map_err(|error| load_failed(kernel, error))?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(BootError::Format {
            path: kernel.path.clone(),
            reason: "it is an ELF file without a PVH entry point (CONFIG_PVH)",
        });
    };
    write_cmdline(memory, &payload.cmdline, CMDLINE_LIMIT - 1)?;
    let initrd = load_initrd(memory, layout, &mut payload, loaded.kernel_end, u64::MAX)?;
    pvh::write_start_info(memory, layout, initrd, rsdp)?;
    Ok(Entry::Pvh {
        rip: entry.0,
        start_info: BOOT_INFO.0,
    })
}

fn load_multiboot(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    mut payload: Linux,
    header: &multiboot::Header,
) -> Result<Entry, BootError> {
    let kernel = &mut payload.kernel;
    let loaded = multiboot::load(memory, layout, header, &mut kernel.file).map_err(|source| {
        BootError::Multiboot {
            path: kernel.path.clone(),
            source,
        }
    })?;
    write_cmdline(memory, &payload.cmdline, CMDLINE_LIMIT - 1)?;
    let initrd = load_initrd(memory, layout, &mut payload, loaded.end, u64::MAX)?;
    multiboot::write_information(memory, layout, initrd)?;
    Ok(Entry::Multiboot {
        rip: loaded.entry.into(),
        information: BOOT_INFO.0,
    })
}

fn load_failed(kernel: &Image, error: linux_loader::loader::Error) -> BootError {
    BootError::Load {
        what: "kernel",
        path: kernel.path.clone(),
        reason: error.to_string(),
    }
}

fn write_cmdline(memory: &GuestMemoryMmap, cmdline: &str, limit: usize) -> Result<(), BootError> {
    let length = cmdline.len();
    if length > limit {
        return Err(BootError::CommandLine { length, limit });
    }
    memory.write_slice(cmdline.as_bytes(), CMDLINE)?;
    memory.write_obj(0u8, GuestAddress(CMDLINE.0.saturating_add(length as u64)))?;
    Ok(())
}

/// Where the initial RAM disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Initrd {
    start: u64,
    size: u64,
}

/// Loads the initial RAM disk as high as it may be: below `highest` and the end of low RAM, above the kernel.
fn load_initrd(
    memory: &GuestMemoryMmap,
    layout: &Layout,
    payload: &mut Linux,
    kernel_end: u64,
    highest: u64,
) -> Result<Option<Initrd>, BootError> {
    let low_end = layout.low_ram_end();
    if kernel_end > low_end {
        return Err(BootError::Memory {
            what: "kernel",
            needed: kernel_end,
            available: low_end,
        });
    }
    let Some(image) = &mut payload.initrd else {
        return Ok(None);
    };
    let failed = |reason: String| BootError::Load {
        what: "initrd",
        path: image.path.clone(),
        reason,
    };
    let size = image
        .file
        .metadata()
        .map_err(|e| failed(e.to_string()))?
        .len();
    let top = low_end.min(highest.saturating_add(1));
    let start = top
        .checked_sub(size)
        .map(|start| start & !0xfff)
        .filter(|start| *start >= kernel_end)
        .ok_or(BootError::Memory {
            what: "initrd",
            needed: kernel_end.saturating_add(size),
            available: top,
        })?;
    let bytes = usize::try_from(size).map_err(|e| failed(e.to_string()))?;
    memory
        .read_exact_volatile_from(GuestAddress(start), &mut image.file, bytes)
        .map_err(|error| failed(error.to_string()))?;
    Ok(Some(Initrd { start, size }))
}
