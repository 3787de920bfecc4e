//! What of a queue survives a migration.

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The position of a queue and the chains in flight.
///
/// What is not here is in guest memory: the ring itself, and the flags and indices with which each side asks for
/// notifications.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueueState {
    /// A split queue.
    Split(SplitState),
    /// A packed queue.
    Packed(PackedState),
}

/// The state of a split queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitState {
    /// Index of the next entry of the available ring (§2.7.6).
    pub next_avail: u16,
    /// Index of the next entry of the used ring (§2.7.8).
    pub next_used: u16,
    /// Heads of the chains that were popped and not pushed, oldest first. A queue restored with this state pops them again.
    pub in_flight: Vec<u16>,
}

/// The state of a packed queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedState {
    /// Where the next chain will be popped.
    pub next_avail: PackedPosition,
    /// Where the next chain will be pushed.
    pub next_used: PackedPosition,
    /// The chains that were popped and not pushed, oldest first. A queue restored with this state pops them again. They are kept
    /// whole, because in the ring their descriptors are overwritten by chains pushed before them.
    pub in_flight: Vec<PackedChain>,
}

/// A position in a packed ring (§2.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedPosition {
    /// The slot, below the queue size.
    pub slot: u16,
    /// The wrap counter.
    pub wrap: bool,
}

impl Default for PackedPosition {
    fn default() -> Self {
        Self {
            slot: 0,
            wrap: true,
        }
    }
}

/// A chain in flight of a packed queue: its descriptors as they were in the ring.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedChain {
    /// The buffer ID.
    pub id: u16,
    /// Address, length and flags (`WRITE`, `INDIRECT`) of each descriptor.
    pub descriptors: Vec<(u64, u32, u16)>,
}

/// Why a [`QueueState`] cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StateError {
    /// The state of a split queue for a packed one, or the other way round.
    #[error("it is of the other ring format")]
    Format,
    /// A slot is not below the queue size.
    #[error("slot {slot} in a queue of {size}")]
    Slot {
        /// The slot.
        slot: u16,
        /// The queue size.
        size: u16,
    },
    /// A head in flight is not below the queue size.
    #[error("chain {head} in flight in a queue of {size}")]
    Head {
        /// The head.
        head: u16,
        /// The queue size.
        size: u16,
    },
    /// A head is in flight twice.
    #[error("chain {0} in flight twice")]
    Twice(u16),
    /// The two positions do not differ by what is in flight: chains (split) or descriptors (packed).
    #[error("positions {apart} apart do not fit {in_flight} in flight")]
    Count {
        /// How far `next_avail` is ahead of `next_used`.
        apart: usize,
        /// What is in flight.
        in_flight: usize,
    },
    /// An in-flight region of a layout that is not known.
    #[error("in-flight region of version {0}")]
    Version(u16),
    /// An in-flight region of another queue size.
    #[error("in-flight region of {found} entries for a queue of {size}")]
    RegionSize {
        /// Entries in the region.
        found: u16,
        /// The queue size.
        size: u16,
    },
    /// An entry of the in-flight region that does not exist, or that more than one chain or list has.
    #[error("entry {0} of the in-flight region")]
    Entry(u16),
}
