use std::io;
use std::ops::Range;

use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

use super::migration::Migration;
use super::token::VfToken;
use crate::sysfs::PciAddress;

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

/// A function that is reset together with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotFunction {
    /// Which.
    pub function: PciAddress,
    /// Whose it is.
    pub holder: Holder,
}

/// Who has a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// This process has opened it.
    Open,
    /// This process has its IOMMU group and has not opened it.
    Closed,
    /// Another process, the host, or nobody.
    Other,
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

    /// Whether vectors of a kind can be added while it is switched on.
    fn grows(&self, interrupt: Interrupt) -> bool;

    /// Lets the vectors of a kind from `first` on signal these eventfds, or nothing. The first call switches the kind on, with vectors up to the
    /// last that it names; later ones are to some of these, or beyond if the kind [`grows`](Self::grows).
    fn connect(
        &self,
        interrupt: Interrupt,
        first: u32,
        eventfds: &[Option<&EventFd>],
    ) -> io::Result<()>;

    /// Switches a kind off.
    fn disconnect(&self, interrupt: Interrupt) -> io::Result<()>;

    /// Unmasks the INTx pin whenever `eventfd` is signalled, which KVM does at the guest's end of interrupt (resampling irqfd).
    fn resample(&self, eventfd: &EventFd) -> io::Result<()>;

    /// Resets the function alone, by FLR where it can.
    fn reset(&self) -> io::Result<()>;

    /// The functions that a reset of the slot or bus resets, this one among them (Linux, `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`). Fails where
    /// there is no such reset, as on a root bus.
    fn slot(&self) -> io::Result<Vec<SlotFunction>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Resets the slot or bus, and so all functions in it; refused unless all are this process's.
    fn reset_slot(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Has whoever opens a virtual function of this physical one name `token`. Refused by other functions.
    fn set_vf_token(&self, token: VfToken) -> io::Result<()> {
        let _ = token;
        Err(io::ErrorKind::Unsupported.into())
    }

    /// How it is migrated, if it can be.
    fn migration(&self) -> Option<&dyn Migration> {
        None
    }
}
