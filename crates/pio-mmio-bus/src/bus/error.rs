use std::fmt;
use std::io;
use std::ops::Range;

use super::{AddressSpace, Doorbell, DoorbellAddress, DoorbellId, HookId, RegionId};

/// Why the bus was not changed. Except for [`Barrier`](Self::Barrier) and [`Bind`](Self::Bind), everything is as before.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// Two regions would share addresses.
    #[error("{new} overlaps {existing}")]
    Overlap {
        /// The region that was to be placed.
        new: NamedRange,
        /// The one that is there.
        existing: NamedRange,
    },
    /// The region has no bytes, or reaches beyond the last address of the space.
    #[error("region {name:?} of {size:#x} bytes at {base:#x} does not fit into {space}")]
    OutOfSpace {
        /// The region that was to be placed.
        name: String,
        /// Its first address.
        base: u64,
        /// Its size in bytes.
        size: u64,
        /// The space.
        space: AddressSpace,
    },
    /// The region was removed, or belongs to another bus.
    #[error("no region {0:?} on this bus")]
    NoRegion(RegionId),
    /// A hook or a doorbell would lie outside its region, or cover nothing.
    #[error("offsets {offsets:#x?} are not in region {name:?} of {size:#x} bytes")]
    NotInRegion {
        /// The region's name.
        name: String,
        /// Its size in bytes.
        size: u64,
        /// What was asked for.
        offsets: Range<u64>,
    },
    /// No write can ring the doorbell: its width is not 1, 2, 4 or 8, its value does not fit the width, or it has a value
    /// but no width.
    #[error("nothing can ring {0:?}")]
    SilentDoorbell(Doorbell),
    /// One write could ring two doorbells.
    #[error("{new:?} at offset {offset:#x} of region {name:?} collides with {existing:?}")]
    DoorbellTaken {
        /// The region's name.
        name: String,
        /// Where both are.
        offset: u64,
        /// The one that was to be added.
        new: Doorbell,
        /// The one that is there.
        existing: Doorbell,
    },
    /// The hook was removed, or its region was, or it belongs to another bus.
    #[error("no hook {0:?} on this bus")]
    NoHook(HookId),
    /// The doorbell was removed, or its region was, or it belongs to another bus.
    #[error("no doorbell {0:?} on this bus")]
    NoDoorbell(DoorbellId),
    /// The binder did not take a doorbell. The change is done all the same, and the bus signals the doorbell itself,
    /// until it moves or another binder is set. Only [`add_doorbell`](super::Bus::add_doorbell) then adds nothing.
    #[error("doorbell {address:x?}: {source}")]
    Bind {
        /// Where the doorbell is.
        address: DoorbellAddress,
        /// What the binder said.
        source: io::Error,
    },
    /// `membarrier(2)` failed. If that happens while the bus is changed, the change is done, but the old table is never
    /// freed: nobody can tell when the last access through it ends.
    #[error("membarrier: {0}")]
    Barrier(#[source] io::Error),
}

/// A region as errors show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedRange {
    /// The region's name.
    pub name: String,
    /// First address.
    pub first: u64,
    /// Last address, inclusive.
    pub last: u64,
}

impl fmt::Display for NamedRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({:#x}..={:#x})", self.name, self.first, self.last)
    }
}
