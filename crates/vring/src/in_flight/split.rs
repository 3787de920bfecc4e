//! Layout and protocol for split rings (`QueueRegionSplit`, `DescStateSplit`).

use super::InFlightRegion;
use crate::state::{SplitState, StateError};

const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;

/// Offsets in the entry of a head.
const IN_FLIGHT: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;

pub(super) const fn len(size: usize) -> usize {
    entry(size)
}

const fn entry(head: usize) -> usize {
    16 + 16 * head
}

/// Keeps the region of a split queue up to date.
pub(crate) struct SplitTracker {
    region: InFlightRegion,
    /// Chains popped so far, and before: of two in flight, the one popped first has the lower number.
    counter: u64,
    /// Heads in the used ring that the driver does not see yet.
    batch: Vec<u16>,
}

impl SplitTracker {
    /// Where a queue starts whose used index is `used_idx` in the ring; `None` if the region is new.
    pub(crate) fn recover(
        region: &InFlightRegion,
        size: u16,
        used_idx: u16,
    ) -> Result<Option<SplitState>, StateError> {
        if !region.is_used(size, false)? {
            return Ok(None);
        }
        // The last batch reached the driver, but may still be marked.
        let batch = used_idx.wrapping_sub(region.load(USED_IDX));
        let mut head: u16 = region.load(LAST_BATCH_HEAD);
        for _ in 0..batch {
            if batch > size || head >= size {
                return Err(StateError::Entry(head));
            }
            let at = entry(head.into());
            region.store(at + IN_FLIGHT, 0u8);
            head = region.load(at + NEXT);
        }
        region.store(USED_IDX, used_idx);
        let mut in_flight: Vec<(u64, u16)> = (0..size)
            .filter(|head| region.load::<u8>(entry((*head).into()) + IN_FLIGHT) != 0)
            .map(|head| (region.load(entry(head.into()) + COUNTER), head))
            .collect();
        in_flight.sort_unstable();
        let count = u16::try_from(in_flight.len()).unwrap_or(u16::MAX);
        Ok(Some(SplitState {
            next_avail: used_idx.wrapping_add(count),
            next_used: used_idx,
            in_flight: in_flight.into_iter().map(|(_, head)| head).collect(),
        }))
    }

    /// Tracks a queue that starts from `state`.
    pub(crate) fn new(region: InFlightRegion, state: &SplitState) -> Self {
        let mut tracker = Self {
            region,
            counter: 0,
            batch: Vec::new(),
        };
        for head in &state.in_flight {
            tracker.begin(*head);
        }
        tracker.region.store(USED_IDX, state.next_used);
        tracker.region.finish();
        tracker
    }

    /// A chain was popped.
    pub(crate) fn begin(&mut self, head: u16) {
        self.counter += 1;
        let at = entry(head.into());
        self.region.store(at + COUNTER, self.counter);
        self.region.store(at + IN_FLIGHT, 1u8);
    }

    /// A chain was put into the used ring, where the driver does not look yet.
    pub(crate) fn stage(&mut self, head: u16) {
        let last: u16 = self.region.load(LAST_BATCH_HEAD);
        self.region.store(entry(head.into()) + NEXT, last);
        self.region.store(LAST_BATCH_HEAD, head);
        self.batch.push(head);
    }

    /// The driver sees what was staged.
    pub(crate) fn publish(&mut self, used_idx: u16) {
        for head in self.batch.drain(..) {
            self.region.store(entry(head.into()) + IN_FLIGHT, 0u8);
        }
        self.region.store(USED_IDX, used_idx);
    }
}
