use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use vm_memory::Permissions;

use super::{BackendError, PageRange, PhysicalIommu, Pinner, Ticket};

/// What each operation costs, in cycles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CostModel {
    /// A map.
    pub map: u64,
    /// An unmap.
    pub unmap: u64,
    /// The submission of an invalidation.
    pub invalidate: u64,
    /// A wait.
    pub wait: u64,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Maps.
    pub maps: u64,
    /// Unmaps.
    pub unmaps: u64,
    /// Invalidations that were submitted.
    pub invalidations: u64,
    /// Waits.
    pub waits: u64,
    /// Cycles by the cost model.
    pub cycles: u64,
}

/// An IOMMU and pinner that does nothing but remember, and count what it would have cost.
///
/// A page counts as reachable from `map` until an invalidation that covers it is done: later than `unmap`, as with an IOTLB that
/// caches everything. An invalidation is done when it is waited for, or after `delay` more calls of `done`.
#[derive(Debug, Default)]
pub struct Recording {
    costs: CostModel,
    delay: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    counts: Counts,
    /// By I/O page: the physical page and whether it is in the tables.
    reachable: BTreeMap<u64, (u64, bool)>,
    /// By physical page.
    pins: BTreeMap<u64, u64>,
    submitted: u64,
    done: u64,
    polls: u64,
    pending: Vec<(Ticket, Option<PageRange>)>,
}

fn pages(range: PageRange) -> impl Iterator<Item = u64> {
    let first = range.address / super::PAGE_SIZE;
    first..first.saturating_add(range.pages)
}

impl Recording {
    /// A recording IOMMU with costs; `delay` as above.
    pub fn new(costs: CostModel, delay: u64) -> Self {
        Self {
            costs,
            delay,
            ..Self::default()
        }
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The physical address that a device reaches at `iova`, through the tables or the IOTLB.
    pub fn reaches(&self, iova: u64) -> Option<u64> {
        let state = self.lock();
        let (page, _) = state.reachable.get(&(iova / super::PAGE_SIZE))?;
        Some(page * super::PAGE_SIZE + iova % super::PAGE_SIZE)
    }

    /// Every physical page that a device reaches, with the number of addresses that it is reached at: what must be pinned.
    pub fn reachable(&self) -> BTreeMap<u64, u64> {
        let mut pages = BTreeMap::new();
        for (page, _) in self.lock().reachable.values() {
            *pages.entry(*page).or_default() += 1;
        }
        pages
    }

    /// Every physical page that is pinned, with the number of pins.
    pub fn pinned(&self) -> BTreeMap<u64, u64> {
        self.lock().pins.clone()
    }
}

impl State {
    fn complete(&mut self, ticket: Ticket) {
        let (done, pending) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|(pending, _)| *pending <= ticket);
        self.pending = pending;
        let done: Vec<(Ticket, Option<PageRange>)> = done;
        for (_, range) in done {
            self.reachable.retain(|page, (_, mapped)| {
                *mapped || range.is_some_and(|range| !pages(range).any(|covered| covered == *page))
            });
        }
        self.done = self.done.max(ticket.0);
    }
}

impl PhysicalIommu for Recording {
    fn map(
        &self,
        iova: PageRange,
        physical: u64,
        _access: Permissions,
    ) -> Result<(), BackendError> {
        let mut state = self.lock();
        state.counts.maps += 1;
        state.counts.cycles += self.costs.map;
        if pages(iova).any(|page| state.reachable.contains_key(&page)) {
            return Err(BackendError::Range(iova));
        }
        let first = physical / super::PAGE_SIZE;
        for (page, physical) in pages(iova).zip(first..) {
            state.reachable.insert(page, (physical, true));
        }
        Ok(())
    }

    fn unmap(&self, iova: PageRange) -> Result<(), BackendError> {
        let mut state = self.lock();
        state.counts.unmaps += 1;
        state.counts.cycles += self.costs.unmap;
        for page in pages(iova) {
            match state.reachable.get_mut(&page) {
                Some((_, mapped)) if *mapped => *mapped = false,
                _ => return Err(BackendError::Range(iova)),
            }
        }
        Ok(())
    }

    fn invalidate(&self, iova: Option<PageRange>) -> Ticket {
        let mut state = self.lock();
        state.counts.invalidations += 1;
        state.counts.cycles += self.costs.invalidate;
        state.submitted += 1;
        state.polls = 0;
        let ticket = Ticket(state.submitted);
        state.pending.push((ticket, iova));
        ticket
    }

    fn done(&self, ticket: Ticket) -> bool {
        let mut state = self.lock();
        state.polls += 1;
        if state.polls > self.delay {
            state.complete(ticket);
        }
        state.done >= ticket.0
    }

    fn wait(&self, ticket: Ticket) {
        let mut state = self.lock();
        state.counts.waits += 1;
        state.counts.cycles += self.costs.wait;
        state.complete(ticket);
    }
}

impl Pinner for Recording {
    fn pin(&self, physical: PageRange) -> Result<(), BackendError> {
        let mut state = self.lock();
        for page in pages(physical) {
            *state.pins.entry(page).or_default() += 1;
        }
        Ok(())
    }

    fn unpin(&self, physical: PageRange) {
        let mut state = self.lock();
        for page in pages(physical) {
            if let Some(pins) = state.pins.get_mut(&page) {
                *pins -= 1;
                if *pins == 0 {
                    state.pins.remove(&page);
                }
            }
        }
    }
}

/// So that one recording serves a mapper as both.
impl<T: PhysicalIommu + ?Sized> PhysicalIommu for Arc<T> {
    fn map(&self, iova: PageRange, physical: u64, access: Permissions) -> Result<(), BackendError> {
        (**self).map(iova, physical, access)
    }

    fn unmap(&self, iova: PageRange) -> Result<(), BackendError> {
        (**self).unmap(iova)
    }

    fn invalidate(&self, iova: Option<PageRange>) -> Ticket {
        (**self).invalidate(iova)
    }

    fn done(&self, ticket: Ticket) -> bool {
        (**self).done(ticket)
    }

    fn wait(&self, ticket: Ticket) {
        (**self).wait(ticket);
    }
}

impl<T: Pinner + ?Sized> Pinner for Arc<T> {
    fn pin(&self, physical: PageRange) -> Result<(), BackendError> {
        (**self).pin(physical)
    }

    fn unpin(&self, physical: PageRange) {
        (**self).unpin(physical);
    }
}
