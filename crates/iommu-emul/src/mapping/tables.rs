use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{Bytes, GuestAddress, Permissions};

use super::{BackendError, PAGE_SIZE, PageRange, PhysicalIommu, Ticket};
use crate::{
    spec::paging::{SecondStageEntry, address_bits, index},
    vtd::PhysicalMemory,
};

/// Tells an IOMMU what is stale: the part of [`PhysicalIommu`] that second-stage tables in memory do not have themselves.
pub trait Invalidator {
    /// Submits the invalidation of some pages, or of all.
    fn invalidate(&self, iova: Option<PageRange>) -> Ticket;

    /// Whether an invalidation is done, and with it all that were submitted before it.
    fn done(&self, ticket: Ticket) -> bool;
}

/// Second-stage tables of VT-d in memory (§3.7), as a guest's driver keeps them; devices translate through them behind a
/// [`Unit`](crate::vtd::Unit).
#[derive(Debug)]
pub struct SecondStageTables<M, I> {
    memory: M,
    invalidator: I,
    root: u64,
    levels: u8,
    /// The next free page for tables, and where they end.
    next: AtomicU64,
    end: u64,
}

impl<M: PhysicalMemory, I: Invalidator> SecondStageTables<M, I> {
    /// Tables of `levels` levels (3 to 5) in the zeroed pages of `space`, the root in the first.
    pub fn new(memory: M, invalidator: I, levels: u8, space: PageRange) -> Self {
        Self {
            memory,
            invalidator,
            root: space.address,
            levels: levels.clamp(3, 5),
            next: AtomicU64::new(space.address.saturating_add(PAGE_SIZE)),
            end: space.address.saturating_add(space.bytes()),
        }
    }

    /// Address of the root table, for a context entry.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Where the entry of a page is; tables on the way are added if `add`.
    fn place(&self, memory: &M::M, iova: u64, add: bool) -> Option<GuestAddress> {
        let mut table = self.root;
        for level in (2..=self.levels).rev() {
            let place = GuestAddress(table + 8 * index(iova, level));
            let entry = SecondStageEntry(memory.load(place, Ordering::Relaxed).ok()?);
            table = if entry.read() {
                entry.address()
            } else if add {
                let page = self.next.fetch_add(PAGE_SIZE, Ordering::Relaxed);
                if page >= self.end {
                    self.next.store(self.end, Ordering::Relaxed);
                    return None;
                }
                memory.store(page | 3, place, Ordering::Release).ok()?;
                page
            } else {
                return None;
            };
        }
        Some(GuestAddress(table + 8 * index(iova, 1)))
    }

    fn set(&self, iova: PageRange, entry: &dyn Fn(u64) -> u64) -> Result<(), BackendError> {
        let end = iova.address.checked_add(iova.bytes());
        if end.is_none_or(|end| (end - 1) >> address_bits(self.levels) != 0) {
            return Err(BackendError::Range(iova));
        }
        let memory = self.memory.memory();
        for page in 0..iova.pages {
            let offset = page * PAGE_SIZE;
            let word = entry(offset);
            let set = self
                .place(&memory, iova.address + offset, word != 0)
                .and_then(|place| memory.store(word, place, Ordering::Release).ok());
            if set.is_none() {
                if word != 0 && page > 0 {
                    self.set(
                        PageRange {
                            pages: page,
                            ..iova
                        },
                        &|_| 0,
                    )?;
                }
                return Err(BackendError::Full(iova));
            }
        }
        Ok(())
    }
}

impl<M: PhysicalMemory, I: Invalidator> PhysicalIommu for SecondStageTables<M, I> {
    fn map(&self, iova: PageRange, physical: u64, access: Permissions) -> Result<(), BackendError> {
        let read = u64::from(access.allow(Permissions::Read));
        let write = u64::from(access.has_write()) << 1;
        self.set(iova, &|offset| (physical + offset) | read | write)
    }

    fn unmap(&self, iova: PageRange) -> Result<(), BackendError> {
        self.set(iova, &|_| 0)
    }

    fn invalidate(&self, iova: Option<PageRange>) -> Ticket {
        self.invalidator.invalidate(iova)
    }

    fn done(&self, ticket: Ticket) -> bool {
        self.invalidator.done(ticket)
    }
}
