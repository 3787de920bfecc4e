use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::doorbell::Placed;
use super::hook::Hooked;
use super::{Access, AccessError, BusDevice, NamedRange, Operation, Outcome, Verdict};

/// Names a region of a bus for as long as it exists, wherever it moves. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegionId(pub(super) u64);

/// One of the two address spaces of an x86 machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// An access on its way.
pub enum Request<'a> {
    Read(&'a mut [u8]),
    Write(&'a [u8]),
}

impl Request<'_> {
    fn width(&self) -> usize {
        self.data().len()
    }

    fn data(&self) -> &[u8] {
        match self {
            Self::Read(data) => data,
            Self::Write(data) => data,
        }
    }

    /// What the guest reads where nothing answers.
    pub fn fill(&mut self) {
        if let Self::Read(data) = self {
            fill(data);
        }
    }
}

/// All ones.
#[inline]
pub fn fill(data: &mut [u8]) {
    // A store, for the width that guests probe with: calling memset would cost as much as the look-up.
    match <&mut [u8; 4]>::try_from(&mut *data) {
        Ok(word) => *word = [0xff; 4],
        Err(_) => data.fill(0xff),
    }
}

/// A device, where it is, if anywhere, and what is attached to it.
#[derive(Clone)]
pub struct Region {
    pub id: RegionId,
    pub name: Arc<str>,
    /// In bytes; at least one.
    pub size: u64,
    pub place: Option<Place>,
    pub device: Arc<dyn BusDevice>,
    /// In the order in which they are asked.
    pub hooks: Vec<Hooked>,
    /// By offset.
    pub doorbells: Vec<Placed>,
}

impl Region {
    /// Where the region would be if it began at `base`.
    pub fn place_at(&self, base: u64, last: u64) -> Option<Place> {
        let reach = self.size.checked_sub(1)?;
        let end = base.checked_add(reach)?;
        (end <= last).then_some(Place {
            first: base,
            last: end,
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

    /// The offsets at which an access may meet a hook or a doorbell: ascending, none touching another.
    pub fn overlaid(&self) -> Vec<RangeInclusive<u64>> {
        let hooks = self
            .hooks
            .iter()
            .map(|hooked| (hooked.offsets.start, hooked.offsets.end.saturating_sub(1)));
        let doorbells = self.ringing().map(|placed| (placed.offset, placed.offset));
        let mut ranges: Vec<_> = hooks.chain(doorbells).collect();
        ranges.sort_unstable();
        ranges.into_iter().map(|(first, last)| first..=last).fold(
            Vec::new(),
            |mut merged: Vec<RangeInclusive<u64>>, range| {
                match merged.last_mut() {
                    Some(previous) if *range.start() <= previous.end().saturating_add(1) => {
                        *previous = *previous.start()..=*previous.end().max(range.end());
                    }
                    _ => merged.push(range),
                }
                merged
            },
        )
    }

    /// The doorbells that the bus may signal.
    pub fn ringing(&self) -> impl Iterator<Item = &Placed> {
        self.doorbells
            .iter()
            .filter(|placed| !placed.doorbell.needs_value)
    }

    /// Whether no hook has to see the writes that ring a doorbell, so that they need not reach the bus.
    pub fn is_unwatched(&self, placed: &Placed) -> bool {
        let width = placed.doorbell.width.map_or(8, u64::from);
        !self
            .hooks
            .iter()
            .any(|hooked| hooked.sees_writes(placed.offset, width))
    }

    /// Carries out an access that begins at `offset` of this region, asking the hooks on its way.
    pub fn access(&self, offset: u64, request: &mut Request<'_>) -> Outcome {
        let width = request.width();
        if let Err(error) = self.fits(offset, width) {
            request.fill();
            return Outcome::Failed(error);
        }
        let written;
        let operation = match request {
            Request::Read(_) => Operation::Read { width },
            Request::Write(data) => {
                written = *data;
                Operation::Write(written)
            }
        };
        let access = Access {
            region: self.id,
            offset,
            operation,
        };
        let (allowed, stopped) = self.ask(&access);
        let outcome = stopped.unwrap_or_else(|| self.deliver(offset, request));
        if outcome != Outcome::Done {
            request.fill();
        }
        for hooked in self
            .hooks
            .iter()
            .take(allowed)
            .rev()
            .filter(|hooked| hooked.sees(offset, operation))
        {
            hooked.hook.after(&access, request.data(), &outcome);
        }
        outcome
    }

    fn fits(&self, offset: u64, width: usize) -> Result<(), AccessError> {
        if !matches!(width, 1 | 2 | 4 | 8) {
            return Err(AccessError::Width { offset, width });
        }
        if self.size.saturating_sub(offset) < width as u64 {
            return Err(AccessError::Straddle { offset, width });
        }
        Ok(())
    }

    /// Asks the hooks: how many have been passed, and how the access ended if one stopped it.
    fn ask(&self, access: &Access<'_>) -> (usize, Option<Outcome>) {
        for (passed, hooked) in self.hooks.iter().enumerate() {
            if !hooked.sees(access.offset, access.operation) {
                continue;
            }
            let stopped = match hooked.hook.before(access) {
                Verdict::Allow => continue,
                Verdict::Deny => Outcome::Failed(AccessError::Denied {
                    offset: access.offset,
                }),
                Verdict::Suspend(suspension) => Outcome::Suspended(suspension),
            };
            return (passed, Some(stopped));
        }
        (self.hooks.len(), None)
    }

    fn deliver(&self, offset: u64, request: &mut Request<'_>) -> Outcome {
        let result = match request {
            Request::Read(data) => self.device.read(offset, data),
            Request::Write(data) => match self.doorbell(offset, data) {
                Some(placed) => {
                    // The only failure of an open eventfd is a counter that is full: then it is signalled already.
                    let _ = placed.doorbell.eventfd.write(1);
                    Ok(())
                }
                None => self.device.write(offset, data),
            },
        };
        match result {
            Ok(()) => Outcome::Done,
            Err(error) => Outcome::Failed(error),
        }
    }

    fn doorbell(&self, offset: u64, data: &[u8]) -> Option<&Placed> {
        let first = self
            .doorbells
            .partition_point(|placed| placed.offset < offset);
        self.doorbells
            .iter()
            .skip(first)
            .take_while(|placed| placed.offset == offset)
            .find(|placed| placed.doorbell.rung_by(data))
            .filter(|placed| !placed.doorbell.needs_value)
    }
}
