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
    mapped: BTreeMap<u64, Extent>,
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
}

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
            Some(wanted) => (wanted, pages),
            None => (BTreeMap::new(), Pages::ALL),
        };
        // What is wanted may reach beyond the pages: whatever it overlaps goes too.
        let first = wanted
            .first_key_value()
            .map_or(pages.address, |(&first, _)| first.min(pages.address));
        let last = wanted
            .last_key_value()
            .map_or(pages.last(), |(&first, extent)| {
                extent.last(first).max(pages.last())
            });
        let stale: Vec<(u64, Extent)> = overlapping(&state.mapped, first, last)
            .filter(|(first, extent)| wanted.get(first) != Some(extent))
            .collect();
        for &(first, extent) in &stale {
            let range = PageRange {
                address: first,
                pages: extent.pages,
            };
            // A backend that cannot unmap what it mapped has lost it already.
            let _lost = self.iommu.unmap(range);
            state.mapped.remove(&first);
            state.counts.unmaps += 1;
        }
        if let [(first, extent)] = stale.as_slice() {
            let range = PageRange {
                address: *first,
                pages: extent.pages,
            };
            self.iommu.wait(self.iommu.invalidate(Some(range)));
        } else if !stale.is_empty() {
            self.iommu.wait(self.iommu.invalidate(None));
        }
        for (first, extent) in wanted {
            if state.mapped.contains_key(&first) {
                continue;
            }
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
    fn wanted(
        &self,
        context: Option<Option<Context>>,
        pages: Pages,
    ) -> Option<BTreeMap<u64, Extent>> {
        let memory = self.unit.memory().memory();
        let mut wanted = BTreeMap::new();
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

/// The ranges that overlap `first..=last`.
fn overlapping(
    mapped: &BTreeMap<u64, Extent>,
    first: u64,
    last: u64,
) -> impl Iterator<Item = (u64, Extent)> {
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
