//! The mapping layer: who allocates I/O virtual addresses, and when they are taken back.
//!
//! It serves whoever owns an address space: a guest driver, a user-space driver on VFIO, the emulation of a unit. A [`Mapper`] gives
//! pages addresses through a [`PhysicalIommu`] by one of the [`Strategy`]s of the literature and keeps each page pinned exactly
//! while a device can reach it.

mod iova;
mod mapper;
mod queued;
mod recording;
mod strategy;
mod tables;

pub use iova::{IovaAllocator, IovaExhausted};
pub use mapper::{MapError, Mapper, Usage};
pub use queued::QueuedInvalidation;
pub use recording::{CostModel, Counts, Recording};
pub use strategy::Strategy;
pub use tables::{Invalidator, SecondStageTables};

use vm_memory::Permissions;

/// Size of the pages that are mapped, in bytes.
pub const PAGE_SIZE: u64 = 4096;

/// Some pages that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageRange {
    /// Address of the first, aligned to [`PAGE_SIZE`].
    pub address: u64,
    /// How many, at least 1.
    pub pages: u64,
}

impl PageRange {
    /// Length in bytes.
    pub const fn bytes(self) -> u64 {
        self.pages.saturating_mul(PAGE_SIZE)
    }
}

/// Why an IOMMU or a pinner refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// Tables, accounting or pins are full.
    #[error("no room for {0:x?}")]
    Full(PageRange),
    /// The range is none of its addresses.
    #[error("{0:x?} is out of range")]
    Range(PageRange),
    /// The operating system refused.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// An invalidation that was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// One address space of an IOMMU: its tables and the invalidation of its cache.
///
/// After [`unmap`](Self::unmap) a device may still reach the pages through the cache, until an invalidation that was submitted
/// later and covers them is done.
pub trait PhysicalIommu {
    /// Maps the pages from `physical` on at `iova`, where nothing is mapped. On error nothing is.
    fn map(&self, iova: PageRange, physical: u64, access: Permissions) -> Result<(), BackendError>;

    /// Removes pages from the tables.
    fn unmap(&self, iova: PageRange) -> Result<(), BackendError>;

    /// Submits the invalidation of some pages, or of all.
    fn invalidate(&self, iova: Option<PageRange>) -> Ticket;

    /// Whether an invalidation is done, and with it all that were submitted before it.
    fn done(&self, ticket: Ticket) -> bool;

    /// Returns when an invalidation is done.
    fn wait(&self, ticket: Ticket) {
        while !self.done(ticket) {
            std::hint::spin_loop();
        }
    }
}

/// Keeps pages where they are while a device may reach them.
pub trait Pinner {
    /// Pins pages. A page that is pinned twice must be unpinned twice.
    fn pin(&self, physical: PageRange) -> Result<(), BackendError>;

    /// Unpins pages.
    fn unpin(&self, physical: PageRange);
}

/// Pins nothing: for memory that stays anyway, such as a guest's own from its driver's point of view.
#[derive(Clone, Copy, Debug, Default)]
pub struct AlwaysResident;

impl Pinner for AlwaysResident {
    fn pin(&self, _physical: PageRange) -> Result<(), BackendError> {
        Ok(())
    }

    fn unpin(&self, _physical: PageRange) {}
}
