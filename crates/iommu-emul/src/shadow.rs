//! Shadowing: what a guest's tables say, carried over into another IOMMU, for devices that do not translate through the unit
//! themselves (passthrough). It needs caching mode, so that the guest invalidates what it makes present too (VT-d §6.1).

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use pio_mmio_bus::pci::RequesterId;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion, Permissions};

use crate::{
    mapping::{PAGE_SIZE, PageRange, PhysicalIommu},
    spec::invalidation::{ContextScope, IotlbScope, Pages, PasidScope},
    vtd::{
        Invalidation, InvalidationObserver, PhysicalMemory, Unit,
        walk::{self, Context, Stages},
    },
};

/// Keeps a [`PhysicalIommu`] equal to what a unit says of one requester's requests without PASID: nothing else is reachable by the
/// device. Only what an invalidation names is walked again and compared.
///
/// Pages that follow each other, lead to pages that follow each other, and appear at the same time are mapped as one. When a part of them
/// goes, all are unmapped and the rest is mapped again: between these, a device that uses the rest at that moment is blocked. Guests
/// unmap what they mapped at once.
///
/// Second-stage tables and pass-through are shadowed; with first-stage tables the guest does not invalidate what it makes present,
/// so such a context is as good as blocked. Guest-physical addresses are the backend's physical ones, and pinning is its business.
pub struct Shadow<M: PhysicalMemory, P> {
    unit: Arc<Unit<M>>,
    requester: RequesterId,
    iommu: P,
    budget: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    context: Option<Option<Context>>,
    /// What is mapped, by first address. Ranges do not overlap.
    mapped: Extents,
    counts: ShadowCounts,
}

/// A range that is mapped as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Extent {
    physical: u64,
    pages: u64,
    access: Permissions,
}

impl Extent {
    fn last(&self, first: u64) -> u64 {
        first + (self.pages * PAGE_SIZE - 1)
    }

    /// The part from `from` to `last`, which are the first and last address of pages of it.
    fn part(&self, first: u64, from: u64, last: u64) -> Self {
        Self {
            physical: self.physical + (from - first),
            pages: (last - from) / PAGE_SIZE + 1,
            access: self.access,
        }
    }

    /// Whether `next`, at `address`, goes on where this one at `first` ends.
    fn continues(&self, first: u64, address: u64, next: &Self) -> bool {
        let bytes = self.pages * PAGE_SIZE;
        first + bytes == address
            && self.physical.checked_add(bytes) == Some(next.physical)
            && self.access == next.access
    }
}

/// Ranges that do not overlap, by first address.
type Extents = BTreeMap<u64, Extent>;

/// What a shadow did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShadowCounts {
    /// Ranges that were mapped.
    pub maps: u64,
    /// Ranges that were unmapped.
    pub unmaps: u64,
    /// Ranges that the backend refused to map: the device faults there.
    pub refused: u64,
    /// Walks that were given up because the tables are too large: the device reaches nothing then.
    pub overflows: u64,
}

impl<M: PhysicalMemory, P: PhysicalIommu + Send + Sync + 'static> Shadow<M, P> {
    /// Shadows what `unit` says of `requester` into `iommu`, which must be empty. A walk looks at no more than `budget` entries.
    pub fn new(unit: Arc<Unit<M>>, requester: RequesterId, iommu: P, budget: u64) -> Arc<Self> {
        let shadow = Arc::new(Self {
            unit,
            requester,
            iommu,
            budget,
            state: Mutex::default(),
        });
        let observer: Arc<dyn InvalidationObserver> = shadow.clone();
        shadow
            .unit
            .observe(Arc::<_>::downgrade(&observer) as Weak<_>);
        shadow.reload(&mut shadow.lock());
        shadow
    }

    /// What was done so far.
    pub fn counts(&self) -> ShadowCounts {
        self.lock().counts
    }

    /// The IOMMU that is kept.
    pub fn iommu(&self) -> &P {
        &self.iommu
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks the context up again and compares everything.
    fn reload(&self, state: &mut State) {
        state.context = self.unit.context(self.requester);
        self.compare(state, Pages::ALL);
    }

    /// Makes what overlaps `pages` what the guest says.
    fn compare(&self, state: &mut State, pages: Pages) {
        let wanted = self.wanted(state.context, pages);
        if wanted.is_none() {
            state.counts.overflows += 1;
        }
        let (wanted, pages) = match wanted {
            Some(wanted) => (runs(wanted), pages),
            None => (Extents::new(), Pages::ALL),
        };
        // What is wanted may reach beyond the pages.
        let first = wanted
            .first_key_value()
            .map_or(pages.address, |(&first, _)| first.min(pages.address));
        let last = wanted
            .last_key_value()
            .map_or(pages.last(), |(&first, extent)| {
                extent.last(first).max(pages.last())
            });
        // What is mapped of it stays if the guest still says so; otherwise what lies outside is to be mapped again.
        let (mut kept, mut missing, mut stale) = (Extents::new(), Extents::new(), Vec::new());
        for (start, extent) in overlapping(&state.mapped, first, last) {
            let end = extent.last(start);
            let (from, to) = (start.max(first), end.min(last));
            let inside = extent.part(start, from, to);
            let same = overlapping(&wanted, from, from)
                .any(|(at, run)| run.last(at) >= to && run.part(at, from, to) == inside);
            if same {
                kept.insert(from, inside);
                continue;
            }
            stale.push(PageRange {
                address: start,
                pages: extent.pages,
            });
            if start < first {
                missing.insert(start, extent.part(start, start, first - 1));
            }
            if last < end {
                missing.insert(last + 1, extent.part(start, last + 1, end));
            }
        }
        for (&at, run) in &wanted {
            let end = run.last(at);
            let mut next = Some(at);
            for (from, part) in overlapping(&kept, at, end) {
                if let Some(next) = next.filter(|next| *next < from) {
                    missing.insert(next, run.part(at, next, from - 1));
                }
                next = part.last(from).checked_add(1);
            }
            if let Some(next) = next.filter(|next| *next <= end) {
                missing.insert(next, run.part(at, next, end));
            }
        }
        for &range in &stale {
            // A backend that cannot unmap what it mapped has lost it already.
            let _lost = self.iommu.unmap(range);
            state.mapped.remove(&range.address);
            state.counts.unmaps += 1;
        }
        match stale.as_slice() {
            [] => {}
            [range] => self.iommu.wait(self.iommu.invalidate(Some(*range))),
            _ => self.iommu.wait(self.iommu.invalidate(None)),
        }
        for (first, extent) in runs(missing) {
            let range = PageRange {
                address: first,
                pages: extent.pages,
            };
            match self.iommu.map(range, extent.physical, extent.access) {
                Ok(()) => {
                    state.mapped.insert(first, extent);
                    state.counts.maps += 1;
                }
                Err(_) => state.counts.refused += 1,
            }
        }
    }

    /// What the guest says of `pages`; `None` if that is too much to look at.
    fn wanted(&self, context: Option<Option<Context>>, pages: Pages) -> Option<Extents> {
        let memory = self.unit.memory().memory();
        let mut wanted = Extents::new();
        match context.map(|context| context.map(|context| context.stages)) {
            None | Some(Some(Stages::PassThrough)) => {
                for region in memory.iter() {
                    let first = region.start_addr().raw_value();
                    wanted.insert(
                        first,
                        Extent {
                            physical: first,
                            pages: region.len() / PAGE_SIZE,
                            access: Permissions::ReadWrite,
                        },
                    );
                }
            }
            Some(Some(Stages::Second(table))) => {
                let mut budget = self.budget;
                walk::second_stage_pages(
                    &*memory,
                    self.unit.capabilities(),
                    table,
                    (pages.address, pages.last()),
                    &mut budget,
                    &mut |first, leaf| {
                        let access = match (leaf.read, leaf.write) {
                            (true, false) => Permissions::Read,
                            (false, true) => Permissions::Write,
                            _ => Permissions::ReadWrite,
                        };
                        let extent = Extent {
                            physical: leaf.output,
                            pages: 1 << (leaf.shift - 12),
                            access,
                        };
                        wanted.insert(first, extent);
                    },
                )?;
            }
            Some(Some(Stages::First(_) | Stages::Nested(..)) | None) => {}
        }
        Some(wanted)
    }
}

/// The same with those that continue others as parts of them.
fn runs(extents: Extents) -> Extents {
    let mut runs: Vec<(u64, Extent)> = Vec::new();
    for (address, extent) in extents {
        match runs.last_mut() {
            Some((first, run)) if run.continues(*first, address, &extent) => {
                run.pages += extent.pages;
            }
            _ => runs.push((address, extent)),
        }
    }
    runs.into_iter().collect()
}

/// The ranges that overlap `first..=last`.
fn overlapping(mapped: &Extents, first: u64, last: u64) -> impl Iterator<Item = (u64, Extent)> {
    let before = mapped
        .range(..first)
        .next_back()
        .filter(|(start, extent)| extent.last(**start) >= first);
    before
        .into_iter()
        .chain(mapped.range(first..=last))
        .map(|(start, extent)| (*start, *extent))
}

impl<M: PhysicalMemory, P: PhysicalIommu + Send + Sync + 'static> InvalidationObserver
    for Shadow<M, P>
{
    fn invalidated(&self, invalidation: &Invalidation) {
        let mut state = self.lock();
        let domain = state.context.flatten().map(|context| context.domain);
        let concerns = |other: u16| domain.is_none_or(|domain| domain == other);
        match *invalidation {
            Invalidation::All
            | Invalidation::Context(ContextScope::Global)
            | Invalidation::Pasid(PasidScope::Global) => self.reload(&mut state),
            Invalidation::Context(ContextScope::Domain(other))
            | Invalidation::Pasid(
                PasidScope::Domain(other) | PasidScope::Pasid { domain: other, .. },
            ) if concerns(other) => self.reload(&mut state),
            Invalidation::Context(ContextScope::Device { source, mask })
                if ContextScope::covers_source(source, mask, self.requester.0) =>
            {
                self.reload(&mut state);
            }
            Invalidation::Iotlb(IotlbScope::Global) => self.compare(&mut state, Pages::ALL),
            Invalidation::Iotlb(IotlbScope::Domain(other)) if domain == Some(other) => {
                self.compare(&mut state, Pages::ALL);
            }
            Invalidation::Iotlb(IotlbScope::Pages(other, pages)) if domain == Some(other) => {
                self.compare(&mut state, pages);
            }
            _ => {}
        }
    }
}

impl<M: PhysicalMemory, P> fmt::Debug for Shadow<M, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shadow")
            .field("requester", &self.requester)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
