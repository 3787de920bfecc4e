use std::{fmt, iter::FusedIterator, ops::Deref, sync::Arc};

use pio_mmio_bus::pci::RequesterId;
use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryBackend, GuestMemoryRegion,
    Permissions, VolatileSlice,
    bitmap::BS,
    guest_memory::{Error, GuestMemorySliceIterator, Result},
};

use super::{Access, Cache, Lane, Leaf, lane::Entered};

type BitmapOf<M> = <<<M as GuestAddressSpace>::M as GuestMemoryBackend>::R as GuestMemoryRegion>::B;

/// The guest's physical memory, where translations end, and where the tables and queues of an IOMMU lie if it has any: any [`GuestAddressSpace`] over
/// plain memory that threads can share, such as `Arc<GuestMemoryMmap>` or `GuestMemoryAtomic<GuestMemoryMmap>`.
pub trait PhysicalMemory: GuestAddressSpace<M: GuestMemoryBackend> + Send + Sync + 'static {}

impl<S: GuestAddressSpace<M: GuestMemoryBackend> + Send + Sync + 'static> PhysicalMemory for S {}

/// An IOMMU as one device's views see it.
pub(crate) trait Translator<M: PhysicalMemory>: Send + Sync {
    /// Serves a miss: finds the page of `address`, caches it and returns it; reports what is blocked.
    fn walk(&self, physical: &M::T, address: u64, access: Access) -> Option<Leaf>;

    /// The last guard of a generation is gone. Called without a lock.
    fn drained(&self);

    /// The device's requester ID is another now.
    fn set_requester(&self, requester: RequesterId);
}

/// Memory as a device behind an IOMMU sees it. [`memory`](GuestAddressSpace::memory) enters the view and returns a guard; an
/// invalidation that the guest waits for completes when the guards that are older than it are gone. So hold a guard as long as
/// the I/O that uses its slices, asynchronous I/O included, and no longer.
///
/// Each clone counts its guards apart: give one to each queue and their threads share no cache line on the way in.
pub struct DmaView<M: PhysicalMemory> {
    port: Arc<Port<M>>,
}

struct Port<M: PhysicalMemory> {
    memory: M,
    translator: Arc<dyn Translator<M>>,
    cache: Arc<Cache>,
    lane: Arc<Lane>,
}

impl<M: PhysicalMemory> DmaView<M> {
    /// A view of `memory` through `translator`, which looks after `cache`.
    pub(crate) fn new(memory: M, translator: Arc<dyn Translator<M>>, cache: Arc<Cache>) -> Self {
        let lane = cache.add_lane();
        Self {
            port: Arc::new(Port {
                memory,
                translator,
                cache,
                lane,
            }),
        }
    }

    /// Changes the requester ID of this view and its clones: the guest renumbered the bus of the function.
    pub fn set_requester(&self, requester: RequesterId) {
        self.port.translator.set_requester(requester);
    }
}

impl<M: PhysicalMemory> Clone for DmaView<M> {
    fn clone(&self) -> Self {
        let Port {
            memory,
            translator,
            cache,
            lane: _,
        } = &*self.port;
        Self::new(memory.clone(), Arc::clone(translator), Arc::clone(cache))
    }
}

impl<M: PhysicalMemory> fmt::Debug for DmaView<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaView")
            .field("cache", &self.port.cache)
            .finish_non_exhaustive()
    }
}

impl<M: PhysicalMemory> GuestAddressSpace for DmaView<M> {
    type M = DmaMemory<M>;
    type T = DmaGuard<M>;

    fn memory(&self) -> DmaGuard<M> {
        let entered = self.port.lane.enter(|| self.port.translator.drained());
        DmaGuard {
            memory: DmaMemory {
                physical: self.port.memory.memory(),
                port: Arc::clone(&self.port),
            },
            entered,
        }
    }
}

/// A stay in a [`DmaView`]. A clone is as old as what it was cloned from.
pub struct DmaGuard<M: PhysicalMemory> {
    memory: DmaMemory<M>,
    entered: Entered,
}

impl<M: PhysicalMemory> Deref for DmaGuard<M> {
    type Target = DmaMemory<M>;

    fn deref(&self) -> &DmaMemory<M> {
        &self.memory
    }
}

impl<M: PhysicalMemory> Clone for DmaGuard<M> {
    fn clone(&self) -> Self {
        let port = Arc::clone(&self.memory.port);
        port.lane.enter_with(self.entered);
        Self {
            memory: DmaMemory {
                physical: self.memory.physical.clone(),
                port,
            },
            entered: self.entered,
        }
    }
}

impl<M: PhysicalMemory> Drop for DmaGuard<M> {
    fn drop(&mut self) {
        let port = &self.memory.port;
        if port.lane.leave(self.entered) {
            port.translator.drained();
        }
    }
}

/// The memory behind a [`DmaGuard`]: addresses are the device's, permissions are checked, and what is blocked is reported by
/// the IOMMU.
pub struct DmaMemory<M: PhysicalMemory> {
    physical: M::T,
    port: Arc<Port<M>>,
}

impl<M: PhysicalMemory> DmaMemory<M> {
    /// Translates one address: the guest-physical address, and how many bytes from there on are contiguous in both spaces
    /// (the rest of the page, however large). `None` if the access is blocked, which is then reported.
    #[inline]
    pub fn translate(&self, address: GuestAddress, access: Access) -> Option<(GuestAddress, u64)> {
        let leaf = match self.port.cache.get(address.0, access) {
            Some(leaf) => leaf,
            None => self.walk(address.0, access)?,
        };
        let size = 1 << leaf.shift;
        let offset = address.0 & (size - 1);
        Some((GuestAddress(leaf.output | offset), size - offset))
    }

    #[cold]
    fn walk(&self, address: u64, access: Access) -> Option<Leaf> {
        self.port.translator.walk(&self.physical, address, access)
    }

    /// As [`Self::translate`], for whatever combination of accesses.
    fn translate_all(
        &self,
        address: GuestAddress,
        access: Permissions,
    ) -> Option<(GuestAddress, u64)> {
        let read = match access {
            Permissions::Write => None,
            _ => Some(self.translate(address, Access::Read)?),
        };
        if access.has_write() {
            self.translate(address, Access::Write)
        } else {
            read
        }
    }
}

impl<M: PhysicalMemory> GuestMemory for DmaMemory<M> {
    type PhysicalMemory = M::M;
    type Bitmap = BitmapOf<M>;

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.slices(addr, count, access).all(|slice| slice.is_ok())
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        Ok(self.slices(addr, count, access))
    }
}

impl<M: PhysicalMemory> DmaMemory<M> {
    fn slices(&self, addr: GuestAddress, count: usize, access: Permissions) -> DmaSlices<'_, M> {
        DmaSlices {
            memory: self,
            next: Some(addr),
            count,
            access,
        }
    }
}

/// The slices of a range of a device's addresses: as long as pages and memory regions are contiguous.
pub struct DmaSlices<'a, M: PhysicalMemory> {
    memory: &'a DmaMemory<M>,
    /// `None` after an error, or when the range would go on beyond the last address.
    next: Option<GuestAddress>,
    count: usize,
    access: Permissions,
}

impl<'a, M: PhysicalMemory> DmaSlices<'a, M> {
    fn slice(&self, address: GuestAddress) -> Option<VolatileSlice<'a, BS<'a, BitmapOf<M>>>> {
        let (physical, contiguous) = self.memory.translate_all(address, self.access)?;
        let length = usize::try_from(contiguous)
            .unwrap_or(usize::MAX)
            .min(self.count);
        GuestMemoryBackend::get_slices(&*self.memory.physical, physical, length)
            .next()?
            .ok()
            .filter(|slice| !slice.is_empty())
    }
}

impl<'a, M: PhysicalMemory> Iterator for DmaSlices<'a, M> {
    type Item = Result<VolatileSlice<'a, BS<'a, BitmapOf<M>>>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.count == 0 {
            return None;
        }
        let Some(address) = self.next else {
            self.count = 0;
            return Some(Err(Error::GuestAddressOverflow));
        };
        let Some(slice) = self.slice(address) else {
            self.count = 0;
            return Some(Err(Error::InvalidGuestAddress(address)));
        };
        self.count = self.count.saturating_sub(slice.len());
        self.next = u64::try_from(slice.len())
            .ok()
            .and_then(|length| address.0.checked_add(length))
            .map(GuestAddress);
        Some(Ok(slice))
    }
}

impl<M: PhysicalMemory> FusedIterator for DmaSlices<'_, M> {}

impl<'a, M: PhysicalMemory> GuestMemorySliceIterator<'a, BS<'a, BitmapOf<M>>> for DmaSlices<'a, M> {}
