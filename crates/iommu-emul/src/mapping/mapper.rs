use std::{
    collections::{HashMap, VecDeque},
    hash::{BuildHasherDefault, Hash, Hasher},
    time::Duration,
};

use vm_memory::Permissions;

use super::{
    BackendError, IovaAllocator, IovaExhausted, PAGE_SIZE, PageRange, PhysicalIommu, Pinner,
    Strategy, Ticket,
};

/// Why pages were not mapped or unmapped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The pages are none: not aligned, or beyond the last address.
    #[error("{0:x?} are no pages")]
    Pages(PageRange),
    /// No addresses are left.
    #[error(transparent)]
    Iova(#[from] IovaExhausted),
    /// The IOMMU or the pinner refused.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Nothing in use is mapped at the address.
    #[error("nothing is mapped at {0:#x}")]
    NotMapped(u64),
}

/// How many mappings there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// In use.
    pub used: usize,
    /// Not in use, but a device can reach them: through the tables, or through the IOTLB until it is invalidated.
    pub stale: usize,
}

/// Maps pages for devices by a [`Strategy`]. A page is pinned from before it is mapped until no device can reach it any more.
#[derive(Debug)]
pub struct Mapper<P, N> {
    iommu: P,
    pinner: N,
    strategy: Strategy,
    iovas: IovaAllocator,
    mappings: Vec<Slot>,
    /// The first free slot.
    vacant: Option<usize>,
    /// By address: every mapping that is in the tables.
    by_iova: HashMap<u64, usize, BuildHasherDefault<PageHasher>>,
    /// By page, where the strategy finds pages again.
    by_page: HashMap<Key, usize, BuildHasherDefault<PageHasher>>,
    /// Mappings that are in the tables but not in use, oldest first.
    idle: Idle,
    /// Mappings that are out of the tables and wait for an invalidation, oldest first.
    removed: VecDeque<Removed>,
    used: usize,
    now: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    physical: PageRange,
    writable: bool,
    readable: bool,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // The rest seldom differs for one address.
        state.write_u64(self.physical.address);
    }
}

#[derive(Debug)]
enum Slot {
    Vacant(Option<usize>),
    Mapping(Mapping),
}

#[derive(Debug)]
struct Mapping {
    iova: u64,
    key: Key,
    users: usize,
    idle_since: Duration,
    /// Neighbours in the list of idle mappings.
    older: Option<usize>,
    younger: Option<usize>,
}

/// The ends and the length of the list of idle mappings.
#[derive(Debug, Default)]
struct Idle {
    oldest: Option<usize>,
    youngest: Option<usize>,
    count: usize,
}

#[derive(Debug)]
struct Removed {
    iova: u64,
    physical: PageRange,
    since: Duration,
    /// The invalidation, once submitted.
    ticket: Option<Ticket>,
}

impl<P: PhysicalIommu, N: Pinner> Mapper<P, N> {
    /// A mapper that allocates from `iovas`.
    pub fn new(iommu: P, pinner: N, iovas: IovaAllocator, strategy: Strategy) -> Self {
        Self {
            iommu,
            pinner,
            strategy,
            iovas,
            mappings: Vec::new(),
            vacant: None,
            by_iova: HashMap::default(),
            by_page: HashMap::default(),
            idle: Idle::default(),
            removed: VecDeque::new(),
            used: 0,
            now: Duration::ZERO,
        }
    }

    /// The IOMMU behind it.
    pub fn iommu(&self) -> &P {
        &self.iommu
    }

    /// The pinner behind it.
    pub fn pinner(&self) -> &N {
        &self.pinner
    }

    /// How many mappings there are.
    pub fn usage(&self) -> Usage {
        Usage {
            used: self.used,
            stale: self.idle.count + self.removed.len(),
        }
    }

    /// Maps pages and returns the address that a device reaches them at.
    ///
    /// # Errors
    ///
    /// If the range is none, or addresses, pins or tables ran out; then nothing changed but that stale mappings may be reclaimed.
    pub fn map(&mut self, physical: PageRange, access: Permissions) -> Result<u64, MapError> {
        let whole = physical.pages.checked_mul(PAGE_SIZE);
        let end = whole.and_then(|bytes| physical.address.checked_add(bytes));
        if physical.pages == 0 || !physical.address.is_multiple_of(PAGE_SIZE) || end.is_none() {
            return Err(MapError::Pages(physical));
        }
        let key = Key {
            physical,
            writable: access.allow(Permissions::Write),
            readable: access.allow(Permissions::Read),
        };
        if self.strategy.reuses()
            && let Some(&index) = self.by_page.get(&key)
        {
            return Ok(self.reuse(index));
        }
        if let Strategy::Asynchronous = self.strategy {
            self.reap();
        }
        if let Strategy::OnDemand { quota } = self.strategy
            && self.by_iova.len() >= quota
        {
            self.reclaim(1)?;
        }
        let iova = match self.iovas.allocate(physical.pages) {
            Err(_) if self.usage().stale > 0 => {
                self.flush()?;
                self.iovas.allocate(physical.pages)?
            }
            allocated => allocated?,
        };
        let range = PageRange {
            address: iova,
            pages: physical.pages,
        };
        let pinned = self.pinner.pin(physical);
        if let Err(error) = pinned {
            self.iovas.free(iova, physical.pages);
            return Err(error.into());
        }
        if let Err(error) = self.iommu.map(range, physical.address, access) {
            self.pinner.unpin(physical);
            self.iovas.free(iova, physical.pages);
            return Err(error.into());
        }
        let index = self.occupy(Mapping {
            iova,
            key,
            users: 1,
            idle_since: Duration::ZERO,
            older: None,
            younger: None,
        });
        self.by_iova.insert(iova, index);
        if self.strategy.reuses() {
            self.by_page.insert(key, index);
        }
        self.used += 1;
        Ok(iova)
    }

    /// Gives back one use of the mapping at `iova`.
    ///
    /// # Errors
    ///
    /// If nothing in use is mapped there, or the IOMMU refuses.
    pub fn unmap(&mut self, iova: u64) -> Result<(), MapError> {
        let index = *self.by_iova.get(&iova).ok_or(MapError::NotMapped(iova))?;
        let now = self.now;
        let mapping = self
            .mapping(index)
            .filter(|mapping| mapping.users > 0)
            .ok_or(MapError::NotMapped(iova))?;
        mapping.users -= 1;
        if mapping.users > 0 {
            return Ok(());
        }
        mapping.idle_since = now;
        self.used -= 1;
        self.append_idle(index);
        match self.strategy {
            Strategy::Strict | Strategy::Shared => self.reclaim(1),
            Strategy::Asynchronous => {
                self.reap();
                self.remove_oldest(1)?;
                self.submit();
                Ok(())
            }
            Strategy::Deferred { quota, .. } => {
                self.remove_oldest(1)?;
                if self.removed.len() > quota {
                    self.finish();
                }
                Ok(())
            }
            Strategy::OnDemand { quota } if self.by_iova.len() > quota => self.reclaim(1),
            Strategy::Persistent | Strategy::OnDemand { .. } => Ok(()),
            // Half of them at once: one invalidation for many, and the younger half may still be hit.
            Strategy::Optimistic { quota, .. } if self.idle.count > quota => {
                self.reclaim(quota / 2 + 1)
            }
            Strategy::Optimistic { .. } => Ok(()),
        }
    }

    /// Tells the time, and reclaims what is stale for too long. Between two calls mappings count as given back at the first.
    ///
    /// # Errors
    ///
    /// If the IOMMU refuses to unmap.
    pub fn tick(&mut self, now: Duration) -> Result<(), MapError> {
        self.now = now;
        match self.strategy {
            Strategy::Optimistic { age, .. } => {
                let mut old = 0;
                let mut next = self.idle.oldest;
                while let Some(mapping) = next.and_then(|index| self.mapping(index)) {
                    if now.saturating_sub(mapping.idle_since) < age {
                        break;
                    }
                    next = mapping.younger;
                    old += 1;
                }
                if old > 0 {
                    self.reclaim(old)?;
                }
            }
            Strategy::Deferred { age, .. } => {
                let oldest = self.removed.front().map(|removed| removed.since);
                if oldest.is_some_and(|since| now.saturating_sub(since) >= age) {
                    self.finish();
                }
            }
            Strategy::Asynchronous => self.reap(),
            _ => {}
        }
        Ok(())
    }

    /// Reclaims everything that is stale.
    ///
    /// # Errors
    ///
    /// If the IOMMU refuses to unmap.
    pub fn flush(&mut self) -> Result<(), MapError> {
        self.reclaim(self.idle.count)
    }

    fn reuse(&mut self, index: usize) -> u64 {
        let Some(mapping) = self.mapping(index) else {
            return 0;
        };
        mapping.users += 1;
        let (iova, first) = (mapping.iova, mapping.users == 1);
        if first {
            self.unlink_idle(index);
            self.used += 1;
        }
        iova
    }

    /// Removes the `count` oldest idle mappings and everything that was removed before, strictly.
    fn reclaim(&mut self, count: usize) -> Result<(), MapError> {
        let removed = self.remove_oldest(count);
        self.finish();
        removed
    }

    /// Takes idle mappings out of the tables.
    fn remove_oldest(&mut self, count: usize) -> Result<(), MapError> {
        for _ in 0..count {
            let Some(index) = self.idle.oldest else {
                break;
            };
            let Some(&mut Mapping {
                iova,
                key,
                idle_since,
                ..
            }) = self.mapping(index)
            else {
                break;
            };
            self.iommu.unmap(PageRange {
                address: iova,
                pages: key.physical.pages,
            })?;
            self.unlink_idle(index);
            self.vacate(index);
            self.by_iova.remove(&iova);
            if self.strategy.reuses() {
                self.by_page.remove(&key);
            }
            self.removed.push_back(Removed {
                iova,
                physical: key.physical,
                since: idle_since,
                ticket: None,
            });
        }
        Ok(())
    }

    /// Submits one invalidation for what was removed without one: of the pages if it is one range, else of all.
    fn submit(&mut self) -> Option<Ticket> {
        let mut waiting = self
            .removed
            .iter()
            .filter(|removed| removed.ticket.is_none());
        let first = waiting.next()?;
        let range = PageRange {
            address: first.iova,
            pages: first.physical.pages,
        };
        let ticket = self
            .iommu
            .invalidate(waiting.next().is_none().then_some(range));
        for removed in &mut self.removed {
            removed.ticket.get_or_insert(ticket);
        }
        Some(ticket)
    }

    /// Invalidates what was removed, waits, and lets go of it.
    fn finish(&mut self) {
        self.submit();
        if let Some(ticket) = self.removed.back().and_then(|removed| removed.ticket) {
            self.iommu.wait(ticket);
        }
        self.reap();
    }

    /// Lets go of what was invalidated.
    fn reap(&mut self) {
        while let Some(removed) = self.removed.front()
            && removed.ticket.is_some_and(|ticket| self.iommu.done(ticket))
        {
            self.pinner.unpin(removed.physical);
            self.iovas.free(removed.iova, removed.physical.pages);
            self.removed.pop_front();
        }
    }

    fn mapping(&mut self, index: usize) -> Option<&mut Mapping> {
        match self.mappings.get_mut(index) {
            Some(Slot::Mapping(mapping)) => Some(mapping),
            _ => None,
        }
    }

    fn occupy(&mut self, mapping: Mapping) -> usize {
        if let Some(index) = self.vacant
            && let Some(slot) = self.mappings.get_mut(index)
        {
            if let Slot::Vacant(next) = *slot {
                self.vacant = next;
            }
            *slot = Slot::Mapping(mapping);
            return index;
        }
        self.mappings.push(Slot::Mapping(mapping));
        self.mappings.len() - 1
    }

    fn vacate(&mut self, index: usize) {
        if let Some(slot) = self.mappings.get_mut(index) {
            *slot = Slot::Vacant(self.vacant.replace(index));
        }
    }

    fn append_idle(&mut self, index: usize) {
        let youngest = self.idle.youngest.replace(index);
        if let Some(mapping) = self.mapping(index) {
            mapping.older = youngest;
            mapping.younger = None;
        }
        match youngest.and_then(|youngest| self.mapping(youngest)) {
            Some(youngest) => youngest.younger = Some(index),
            None => self.idle.oldest = Some(index),
        }
        self.idle.count += 1;
    }

    fn unlink_idle(&mut self, index: usize) {
        let Some(mapping) = self.mapping(index) else {
            return;
        };
        let (older, younger) = (mapping.older.take(), mapping.younger.take());
        match older.and_then(|older| self.mapping(older)) {
            Some(older) => older.younger = younger,
            None => self.idle.oldest = younger,
        }
        match younger.and_then(|younger| self.mapping(younger)) {
            Some(younger) => younger.older = older,
            None => self.idle.youngest = older,
        }
        self.idle.count -= 1;
    }
}

/// Hashes addresses of pages by multiplication: the keys are the owner's own, and this is most of a hit's cost.
#[derive(Debug, Default)]
struct PageHasher(u64);

impl Hasher for PageHasher {
    #[inline]
    fn finish(&self) -> u64 {
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}
