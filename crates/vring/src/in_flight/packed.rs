//! Layout and protocol for packed rings (`QueueRegionPacked`, `DescStatePacked`).

use super::InFlightRegion;
use crate::packed_position::Position;
use crate::state::{PackedPosition, StateError};

const FREE_HEAD: usize = 12;
const OLD_FREE_HEAD: usize = 14;
const USED_IDX: usize = 16;
const OLD_USED_IDX: usize = 18;
const USED_WRAP: usize = 20;
const OLD_USED_WRAP: usize = 21;

/// Offsets in an entry.
const IN_FLIGHT: usize = 0;
const NEXT: usize = 2;
const LAST: usize = 4;
const NUM: usize = 6;
const COUNTER: usize = 8;
const ID: usize = 16;
const FLAGS: usize = 18;
const LEN: usize = 20;
const ADDR: usize = 24;

pub(super) const fn len(size: usize) -> usize {
    entry(size)
}

const fn entry(index: usize) -> usize {
    32 + 32 * index
}

/// A descriptor that was popped, and its place among the entries.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PackedEntry {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) id: u16,
    pub(crate) flags: u16,
    /// The next entry, of the same chain or free; the queue size or more at the end.
    pub(crate) next: u16,
}

/// What a region says of a queue.
pub(crate) struct Recovered {
    pub(crate) entries: Vec<PackedEntry>,
    /// The first free entry.
    pub(crate) free_head: u16,
    pub(crate) next_used: PackedPosition,
    /// The first entry and the number of entries of the chains in flight, oldest first.
    pub(crate) chains: Vec<(u16, u16)>,
}

/// Keeps the region of a packed queue up to date. Its entries are those that the queue has itself, by the same numbers.
pub(crate) struct PackedTracker {
    region: InFlightRegion,
    counter: u64,
}

impl PackedTracker {
    /// What to start from, `available` telling whether the descriptor at a position of the ring was not used yet; `None` if the
    /// region is new.
    pub(crate) fn recover(
        region: &InFlightRegion,
        size: u16,
        available: impl FnOnce(PackedPosition) -> bool,
    ) -> Result<Option<Recovered>, StateError> {
        if !region.is_used(size, true)? {
            return Ok(None);
        }
        let position = |idx, wrap| PackedPosition {
            slot: region.load(idx),
            wrap: region.load::<u8>(wrap) != 0,
        };
        let (new, old) = (
            position(USED_IDX, USED_WRAP),
            position(OLD_USED_IDX, OLD_USED_WRAP),
        );
        for at in [new, old] {
            if at.slot >= size {
                return Err(StateError::Slot {
                    slot: at.slot,
                    size,
                });
            }
        }
        // The last push was cut short. It holds if the driver can see it.
        let done = new != old && !available(old);
        let next_used = if done { new } else { old };
        let free_head: u16 = region.load(if done { FREE_HEAD } else { OLD_FREE_HEAD });

        let entries: Vec<PackedEntry> = (0..size).map(|index| load(region, index)).collect();
        let mut seen = vec![false; entries.len()];
        let mut visit = |index: u16| {
            let seen = seen.get_mut(usize::from(index));
            match seen.filter(|seen| !**seen) {
                Some(seen) => *seen = true,
                None => return Err(StateError::Entry(index)),
            }
            let next = entries.get(usize::from(index)).map(|entry| entry.next);
            next.ok_or(StateError::Entry(index))
        };
        let mut index = free_head;
        let mut free = 0;
        while index < size {
            let next = visit(index)?;
            region.store(entry(index.into()) + IN_FLIGHT, 0u8);
            free += 1;
            index = next;
        }
        let mut chains = Vec::new();
        for head in 0..size {
            let at = entry(head.into());
            if region.load::<u8>(at + IN_FLIGHT) == 0 {
                continue;
            }
            let num: u16 = region.load(at + NUM);
            let mut index = head;
            for _ in 0..num {
                index = visit(index)?;
            }
            free += u32::from(num);
            chains.push((region.load::<u64>(at + COUNTER), head, num));
        }
        if free != u32::from(size) || chains.iter().any(|(_, _, num)| *num == 0) {
            return Err(StateError::Entry(free_head));
        }
        chains.sort_unstable();
        Ok(Some(Recovered {
            entries,
            free_head,
            next_used,
            chains: chains
                .into_iter()
                .map(|(_, head, num)| (head, num))
                .collect(),
        }))
    }

    /// Tracks a queue that has these entries and chains.
    pub(crate) fn new(region: InFlightRegion, start: &Recovered) -> Self {
        let mut tracker = Self { region, counter: 0 };
        for (index, entry) in (0..).zip(&start.entries) {
            tracker.keep(index, *entry);
            tracker
                .region
                .store(self::entry(index.into()) + NEXT, entry.next);
        }
        for (head, num) in &start.chains {
            let at = entry((*head).into());
            tracker.counter += 1;
            tracker.region.store(at + NUM, *num);
            tracker.region.store(at + COUNTER, tracker.counter);
            tracker.region.store(at + IN_FLIGHT, 1u8);
        }
        tracker.region.store(FREE_HEAD, start.free_head);
        tracker.region.store(USED_IDX, start.next_used.slot);
        let wrap = u8::from(start.next_used.wrap);
        tracker.region.store(USED_WRAP, wrap);
        tracker.commit(start.free_head, start.next_used);
        tracker.region.finish();
        tracker
    }

    /// Keeps a descriptor, but not its link: until the chain is in flight, that is one of the free entries.
    fn keep(&self, index: u16, kept: PackedEntry) {
        let at = entry(index.into());
        let PackedEntry {
            addr,
            len,
            id,
            flags,
            next: _,
        } = kept;
        self.region.store(at + ADDR, addr);
        self.region.store(at + LEN, len);
        self.region.store(at + ID, id);
        self.region.store(at + FLAGS, flags);
    }

    /// A chain was popped: its entries, and the first that is free after them.
    pub(crate) fn begin(
        &mut self,
        chain: impl Iterator<Item = (u16, PackedEntry)>,
        free_head: u16,
    ) {
        let mut head = None;
        let (mut last, mut num) = (0, 0u16);
        for (index, kept) in chain {
            self.keep(index, kept);
            head.get_or_insert(index);
            last = index;
            num += 1;
        }
        let Some(head) = head else {
            return;
        };
        let at = entry(head.into());
        self.counter += 1;
        self.region.store(at + LAST, last);
        self.region.store(at + NUM, num);
        self.region.store(at + COUNTER, self.counter);
        self.region.store(at + IN_FLIGHT, 1u8);
        self.region.store(FREE_HEAD, free_head);
        // From here on the chain is in flight.
        self.region.store(OLD_FREE_HEAD, free_head);
    }

    /// A chain is about to be put into the ring: its first and last entry, the first that is free before, and where it will end.
    pub(crate) fn stage(&self, first: u16, last: u16, free_head: u16, next_used: PackedPosition) {
        self.region.store(entry(last.into()) + NEXT, free_head);
        self.region.store(FREE_HEAD, first);
        self.region.store(USED_WRAP, u8::from(next_used.wrap));
        self.region.store(USED_IDX, next_used.slot);
    }

    /// The driver sees what was staged last.
    pub(crate) fn publish(&self, first: u16, next_used: PackedPosition) {
        self.region.store(entry(first.into()) + IN_FLIGHT, 0u8);
        self.commit(first, next_used);
    }

    fn commit(&self, free_head: u16, next_used: PackedPosition) {
        self.region.store(OLD_FREE_HEAD, free_head);
        self.region.store(OLD_USED_WRAP, u8::from(next_used.wrap));
        self.region.store(OLD_USED_IDX, next_used.slot);
    }
}

fn load(region: &InFlightRegion, index: u16) -> PackedEntry {
    let at = entry(index.into());
    PackedEntry {
        addr: region.load(at + ADDR),
        len: region.load(at + LEN),
        id: region.load(at + ID),
        flags: region.load(at + FLAGS),
        next: region.load(at + NEXT),
    }
}

impl Recovered {
    /// Where the next chain will be popped.
    pub(crate) fn next_avail(&self, size: u16) -> PackedPosition {
        let taken = self.chains.iter().map(|(_, num)| *num).sum();
        Position::from(self.next_used).step(taken, size).into()
    }
}
