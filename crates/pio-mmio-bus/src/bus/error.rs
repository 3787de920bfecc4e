use std::fmt;
use std::io;

use super::{AddressSpace, RegionId};

/// Why the bus was not changed. Unless a variant says otherwise, everything is as before.
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
