use std::fmt;
use std::sync::Arc;

use super::{BusDevice, BusError, NamedRange};

/// Names a region of a bus for as long as it exists, wherever it moves. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionId(pub(super) u64);

/// One of the two address spaces of an x86 machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressSpace {
    /// I/O ports, `0..=0xffff`.
    Pio,
    /// Memory addresses, 64 bits.
    Mmio,
}

impl AddressSpace {
    /// The last address.
    pub const fn last(self) -> u64 {
        match self {
            Self::Pio => 0xffff,
            Self::Mmio => u64::MAX,
        }
    }
}

impl fmt::Display for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pio => "port space",
            Self::Mmio => "memory space",
        })
    }
}

/// Where a region is: both ends inclusive, so that it can reach the top of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub first: u64,
    pub last: u64,
}

impl Place {
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// A device and where it is, if anywhere.
#[derive(Clone)]
pub struct Region {
    pub id: RegionId,
    pub name: Arc<str>,
    pub size: u64,
    pub place: Option<Place>,
    pub device: Arc<dyn BusDevice>,
}

impl Region {
    /// Where the region would be if it began at `base`.
    pub fn place_at(&self, base: u64, space: AddressSpace) -> Result<Place, BusError> {
        self.size
            .checked_sub(1)
            .and_then(|reach| base.checked_add(reach))
            .filter(|&last| last <= space.last())
            .map(|last| Place { first: base, last })
            .ok_or_else(|| BusError::OutOfSpace {
                name: self.name.to_string(),
                base,
                size: self.size,
                space,
            })
    }

    /// The region at `place`, as errors show it.
    pub fn named(&self, place: Place) -> NamedRange {
        NamedRange {
            name: self.name.to_string(),
            first: place.first,
            last: place.last,
        }
    }
}
