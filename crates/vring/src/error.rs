//! What can go wrong in a queue.

use thiserror::Error;

use crate::mapping::NoMemory;

/// Why a queue operation failed.
///
/// [`AvailIndex`](Error::AvailIndex), [`Chain`](Error::Chain) and [`Ring`](Error::Ring) are the driver's doing. They break
/// the queue: every later operation returns [`Broken`](Error::Broken), and the device should set `DEVICE_NEEDS_RESET`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Error {
    /// The queue failed before and has to be reset.
    #[error("the queue is broken until it is reset")]
    Broken,
    /// The available index is more than a queue size ahead (§2.7.13.3).
    #[error("available index {index} is more than a queue ahead of {next}")]
    AvailIndex {
        /// What the driver wrote.
        index: u16,
        /// The index of the next entry to be popped.
        next: u16,
    },
    /// A chain breaks a rule.
    #[error("chain {head}: {rule}")]
    Chain {
        /// Index of its first descriptor (split) or buffer ID (packed).
        head: u16,
        /// The rule.
        rule: Rule,
    },
    /// The ring is not in accessible memory.
    #[error("ring: {0}")]
    Ring(#[from] NoMemory),
    /// The chain pushed is not one of this queue in flight.
    #[error("chain {0} is not in flight")]
    NotInFlight(u16),
    /// A chain was pushed with a length above its writable bytes.
    #[error("chain {head}: {written} bytes written, {writable} writable")]
    Written {
        /// The chain.
        head: u16,
        /// The length that was to be reported.
        written: u32,
        /// The bytes that could have been written.
        writable: u64,
    },
}

impl Error {
    /// Whether the error is the driver's doing, so that the queue is of no more use.
    pub(crate) fn breaks(&self) -> bool {
        match self {
            Self::AvailIndex { .. } | Self::Chain { .. } | Self::Ring(_) => true,
            Self::Broken | Self::NotInFlight(_) | Self::Written { .. } => false,
        }
    }
}

/// The rules that a chain can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Rule {
    /// The head (split) or buffer ID (packed) is not below the queue size. The specification does not bound buffer IDs, but
    /// says that there need not be more of them than descriptors, and no driver is known that uses others.
    #[error("the head is not below the queue size")]
    Head,
    /// The head was made available again before it was used.
    #[error("it is in flight already")]
    InFlight,
    /// `next` is not below the queue size, or the size of the indirect table.
    #[error("next descriptor {0} does not exist")]
    Next(u16),
    /// More descriptors than the queue size, or a loop (§2.7.5.3.1); in a packed ring, those of chains in flight count too.
    #[error("it has more descriptors than the queue has left, or loops")]
    TooLong,
    /// An indirect descriptor without `VIRTIO_F_INDIRECT_DESC`.
    #[error("indirect descriptor without the feature")]
    IndirectFeature,
    /// `INDIRECT` together with `NEXT` (§2.7.5.3.1).
    #[error("INDIRECT together with NEXT")]
    IndirectNext,
    /// An indirect descriptor in an indirect table (§2.7.5.3.1).
    #[error("indirect table within an indirect table")]
    IndirectNested,
    /// The length of an indirect table is zero, not a multiple of 16 (§2.7.5.3.2), or that of more entries than 65535.
    #[error("indirect table of {0} bytes")]
    IndirectLength(u32),
    /// A readable descriptor follows a writable one (§2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// The buffers are more than 2³² bytes in all (§2.7.5.2).
    #[error("{0} bytes in all")]
    Bytes(u64),
    /// The buffers lie in more pieces of memory than are kept for a chain.
    #[error("more than {0} pieces of memory")]
    Pieces(usize),
    /// A buffer or table is not in memory that may be accessed so.
    #[error(transparent)]
    Memory(#[from] NoMemory),
}
