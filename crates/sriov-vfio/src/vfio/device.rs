use std::io;
use std::ops::Range;

use bitflags::bitflags;
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

use super::memory::HostMemory;
use super::migration::Migration;

/// A region of a PCI device (Linux, `VFIO_PCI_*_REGION_INDEX`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RegionIndex {
    /// The BAR whose first register has this number, 0 to 5.
    Bar(u8),
    /// Configuration space.
    Config,
}

impl RegionIndex {
    /// As the kernel numbers it.
    pub const fn number(self) -> u32 {
        match self {
            Self::Bar(bar) => bar as u32,
            Self::Config => 7,
        }
    }
}

/// What there is of a region.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Its size in bytes; 0 if the device does not have it.
    pub size: u64,
    /// The parts that may be mapped into the guest, by offset: what is not in them must be trapped.
    pub mappable: Vec<Range<u64>>,
}

/// How a device interrupts (Linux, `VFIO_PCI_*_IRQ_INDEX`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Interrupt {
    /// A level-triggered pin. The kernel masks it when it fires, until it is told that the guest is done.
    Intx,
    /// MSI.
    Msi,
    /// MSI-X.
    Msix,
    /// An uncorrectable error of the device.
    Error,
    /// The host asks for the device back.
    Request,
}

impl Interrupt {
    /// As the kernel numbers it.
    pub const fn number(self) -> u32 {
        match self {
            Self::Intx => 0,
            Self::Msi => 1,
            Self::Msix => 2,
            Self::Error => 3,
            Self::Request => 4,
        }
    }
}

/// A device that VFIO gave to user space.
pub trait VfioDevice: Send + Sync {
    /// What there is of a region.
    fn region(&self, index: RegionIndex) -> Region;

    /// Reads `data.len()` bytes of a region, which must be inside it.
    fn read(&self, index: RegionIndex, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes to a region.
    fn write(&self, index: RegionIndex, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Maps a part of a region into this process, to be shown to the guest: whole pages, inside what is mappable.
    fn map(&self, index: RegionIndex, part: Range<u64>) -> io::Result<MmapRegion>;

    /// How many interrupts of a kind there are.
    fn vectors(&self, interrupt: Interrupt) -> u32;

    /// Lets the first vectors of a kind signal these eventfds, and no others. An empty list switches the kind off.
    fn connect(&self, interrupt: Interrupt, eventfds: &[&EventFd]) -> io::Result<()>;

    /// Unmasks the INTx pin whenever `eventfd` is signalled, which KVM does at the guest's end of interrupt (resampling irqfd).
    fn resample(&self, eventfd: &EventFd) -> io::Result<()>;

    /// Resets the function, by FLR where it can.
    fn reset(&self) -> io::Result<()>;

    /// How it is migrated, if it can be.
    fn migration(&self) -> Option<&dyn Migration> {
        None
    }
}

bitflags! {
    /// What a device may do to memory.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Access: u32 {
        /// Read it.
        const READ = 1 << 0;
        /// Write it.
        const WRITE = 1 << 1;
    }
}

/// The I/O address space of one or more devices (a container of type 1, an IOAS).
pub trait DmaSpace: Send + Sync {
    /// Lets the devices reach `memory` at `iova`, where nothing is mapped. All is page-aligned. The memory is pinned, and kept, until it
    /// is unmapped.
    fn map(&self, iova: u64, memory: &HostMemory, access: Access) -> io::Result<()>;

    /// Takes back `size` bytes from `iova` on: whole mappings. After it returns, no device reaches them.
    fn unmap(&self, iova: u64, size: u64) -> io::Result<()>;
}
