//! The queue types that `vring` will export, until it does.

use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;

/// Size, addresses and negotiated features of a queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueConfig {
    /// Descriptors in the ring.
    pub size: u16,
    /// Descriptor area.
    pub desc: GuestAddress,
    /// Driver area.
    pub avail: GuestAddress,
    /// Device area.
    pub used: GuestAddress,
    /// Negotiated feature bits.
    pub features: u64,
}

/// Where a queue stopped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {}

/// Why a ring is not usable.
#[derive(Debug, thiserror::Error)]
pub enum Error {}
