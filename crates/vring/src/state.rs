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

/// Why a [`QueueState`] cannot be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StateError {
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
    /// The two positions do not differ by the number of chains in flight.
    #[error("{next_avail} popped and {next_used} pushed do not leave {in_flight} in flight")]
    Count {
        /// Index of the next entry to be popped.
        next_avail: u16,
        /// Index of the next entry to be pushed.
        next_used: u16,
        /// Chains in flight.
        in_flight: usize,
    },
}
