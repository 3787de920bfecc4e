//! What is in flight, kept where it outlives the process: the region that vhost-user defines ("Inflight I/O tracking").
//!
//! A backend that is killed leaves behind in shared memory which chains it had popped and not pushed. One that
//! takes its place pops them again, those of a last push that may have been cut short included, none twice.

mod packed;
mod split;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{AtomicAccess, Bytes, MmapRegion, VolatileMemory as _};

use crate::spec::{Features, MAX_QUEUE_SIZE};
use crate::state::StateError;
pub(crate) use packed::{PackedEntry, PackedTracker, Recovered};
pub(crate) use split::SplitTracker;

/// The version of the layout; zero in a region that was not used yet.
const VERSION: u16 = 1;

/// Where both layouts have the version and the size.
const AT_VERSION: usize = 8;
const AT_SIZE: usize = 10;

/// One queue's part of the shared memory in which vhost-user tracks what is in flight.
///
/// The memory belongs to the frontend: whatever it holds is checked when a queue starts from it, and only written after that.
#[derive(Clone, Debug)]
pub struct InFlightRegion {
    area: Arc<MmapRegion>,
    offset: usize,
    size: u16,
    packed: bool,
}

impl InFlightRegion {
    /// Bytes that a queue of `size` descriptors takes, as a multiple of 64.
    pub fn len(features: Features, size: u16) -> usize {
        let size = usize::from(size);
        let len = if features.contains(Features::RING_PACKED) {
            packed::len(size)
        } else {
            split::len(size)
        };
        len.next_multiple_of(64)
    }

    /// The region at `offset` in `area` of a queue of `size` descriptors; `None` if it does not lie there, is not aligned to 8 bytes, or
    /// no queue has that size.
    pub fn new(
        area: Arc<MmapRegion>,
        offset: usize,
        features: Features,
        size: u16,
    ) -> Option<Self> {
        let end = offset.checked_add(Self::len(features, size))?;
        let fits = end <= area.size() && offset.is_multiple_of(8);
        (fits && (1..=MAX_QUEUE_SIZE).contains(&size)).then_some(Self {
            area,
            offset,
            size,
            packed: features.contains(Features::RING_PACKED),
        })
    }

    /// Whether a queue has used it. What is there then must be of a queue such as this one; it may have fewer descriptors.
    fn is_used(&self, size: u16, packed: bool) -> Result<bool, StateError> {
        let found = match self.load(AT_VERSION) {
            0 => self.size,
            VERSION => self.load(AT_SIZE),
            version => return Err(StateError::Version(version)),
        };
        if self.packed != packed {
            return Err(StateError::Format);
        }
        if found != self.size || found < size {
            return Err(StateError::RegionSize { found, size });
        }
        Ok(self.load::<u16>(AT_VERSION) != 0)
    }

    fn load<T: AtomicAccess + Default>(&self, at: usize) -> T {
        // The region is known to lie in the area.
        let slice = self.area.as_volatile_slice();
        slice
            .load(self.offset + at, Ordering::Acquire)
            .unwrap_or_default()
    }

    /// Writes after all that was written before, so that whoever comes later never sees it without.
    fn store<T: AtomicAccess>(&self, at: usize, value: T) {
        let slice = self.area.as_volatile_slice();
        let _ = slice.store(value, self.offset + at, Ordering::Release);
    }

    /// Says what the region is, after all else.
    fn finish(&self) {
        self.store(AT_SIZE, self.size);
        self.store(AT_VERSION, VERSION);
    }
}
