//! A domain's mappings of other domains' frames, by handle.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::spec::DomId;
use crate::spec::grant::{GrantRef, MapFlags};

/// Mappings that a frame of Xen's has room for: what limits are counted in.
const PER_FRAME: usize = 256;

/// One mapping. `flags` tells which of its halves, for the host and for devices, are still there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Mapping {
    pub(super) domain: DomId,
    pub(super) reference: GrantRef,
    pub(super) flags: MapFlags,
    /// The number of the frame.
    pub(super) frame: u64,
    /// Where it is mapped.
    pub(super) host_address: u64,
}

#[derive(Debug)]
enum Slot {
    Free(Option<usize>),
    Used(Mapping),
}

/// The mappings that one virtual CPU made.
#[derive(Debug, Default)]
pub(super) struct Shard {
    slots: Vec<Slot>,
    free: Option<usize>,
    /// Slots that this shard may have, as far as frames were given to it.
    room: usize,
}

/// All mappings of a domain, in a shard for each virtual CPU so that these do not wait for each other.
#[derive(Debug)]
pub(super) struct Maptrack {
    shards: Box<[Mutex<Shard>]>,
    /// A handle's lowest bits, which tell the shard; the others are an index in it.
    shard_bits: u32,
    /// Frames that no shard has yet.
    frames: AtomicUsize,
}

impl Maptrack {
    pub(super) fn new(shards: usize, frames: usize) -> Self {
        let shards = shards.max(1);
        Self {
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            shard_bits: usize::BITS - (shards - 1).leading_zeros(),
            frames: AtomicUsize::new(frames),
        }
    }

    pub(super) fn shards(&self) -> usize {
        self.shards.len()
    }

    /// The shard of a handle. There may be none.
    pub(super) fn shard_of(&self, handle: u32) -> usize {
        self.split(handle).map_or(usize::MAX, |(shard, _)| shard)
    }

    pub(super) fn lock(&self, shard: usize) -> Option<MutexGuard<'_, Shard>> {
        let shard = self.shards.get(shard)?;
        Some(shard.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn split(&self, handle: u32) -> Option<(usize, usize)> {
        let handle = usize::try_from(handle).ok()?;
        let shard = handle & ((1 << self.shard_bits) - 1);
        Some((shard, handle >> self.shard_bits))
    }

    fn index_of(&self, handle: u32) -> Option<usize> {
        self.split(handle).map(|(_, index)| index)
    }

    fn handle(&self, shard: usize, index: usize) -> Option<u32> {
        let handle = index.checked_mul(1 << self.shard_bits)? | shard;
        u32::try_from(handle).ok()
    }

    /// A handle that is not in use, of a shard that the caller has locked. It stays free until it is set.
    pub(super) fn reserve(&self, number: usize, shard: &mut Shard) -> Option<u32> {
        let index = match shard.free {
            Some(index) => index,
            None => self.extend(shard)?,
        };
        self.handle(number, index)
    }

    #[cold]
    fn extend(&self, shard: &mut Shard) -> Option<usize> {
        let index = shard.slots.len();
        if index == shard.room {
            let taken = |frames: usize| frames.checked_sub(1);
            self.frames
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken)
                .ok()?;
            shard.room = shard.room.saturating_add(PER_FRAME);
        }
        shard.slots.push(Slot::Free(shard.free));
        shard.free = Some(index);
        Some(index)
    }

    /// Sets the handle that was reserved.
    pub(super) fn set(&self, shard: &mut Shard, handle: u32, mapping: Mapping) {
        let slot = self
            .index_of(handle)
            .and_then(|index| shard.slots.get_mut(index));
        if let Some(slot) = slot
            && let Slot::Free(next) = *slot
        {
            shard.free = next;
            *slot = Slot::Used(mapping);
        }
    }

    /// The mapping of a handle.
    pub(super) fn get<'s>(&self, shard: &'s mut Shard, handle: u32) -> Option<&'s mut Mapping> {
        match shard.slots.get_mut(self.index_of(handle)?)? {
            Slot::Used(mapping) => Some(mapping),
            Slot::Free(_) => None,
        }
    }

    pub(super) fn remove(&self, shard: &mut Shard, handle: u32) {
        let Some(index) = self.index_of(handle) else {
            return;
        };
        if let Some(slot @ Slot::Used(_)) = shard.slots.get_mut(index) {
            *slot = Slot::Free(shard.free);
            shard.free = Some(index);
        }
    }

    /// Whether a mapping is one of these.
    pub(super) fn any(&self, wanted: impl Fn(&Mapping) -> bool) -> bool {
        self.shards.iter().any(|shard| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let mut slots = shard.slots.iter();
            slots.any(|slot| matches!(slot, Slot::Used(mapping) if wanted(mapping)))
        })
    }

    /// Some handles in use, at most `limit`.
    pub(super) fn used(&self, limit: usize) -> Vec<(u32, Mapping)> {
        let shards = self.shards.iter().enumerate();
        let all = shards.flat_map(|(number, shard)| {
            let shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            let used = |(index, slot): (usize, &Slot)| match slot {
                Slot::Used(mapping) => Some((self.handle(number, index)?, *mapping)),
                Slot::Free(_) => None,
            };
            let list: Vec<_> = shard
                .slots
                .iter()
                .enumerate()
                .filter_map(used)
                .take(limit)
                .collect();
            list
        });
        all.take(limit).collect()
    }
}
