use std::sync::Arc;
use std::time::Instant;

use super::account::{Meter, Meters};
use super::reclaim::Reader;
use super::region::{Request, fill};
use super::table::{Segment, Table};
use super::{AccessError, Suspension};

/// How an access ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a suspended access has to be made again"]
pub enum Outcome {
    /// The device carried it out, or it rang a doorbell.
    Done,
    /// No region holds the address. A read gave all ones, a write was ignored.
    Unclaimed,
    /// The access could not be carried out. A read gave all ones, a write was ignored.
    Failed(AccessError),
    /// A hook put the access off: it has not happened. The vCPU is to make the same access again once the suspension is
    /// over.
    Suspended(Suspension),
}

/// How a string access ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a suspended access has to be made again"]
pub struct StringOutcome {
    /// How many elements have been transferred, those that failed or that nobody claimed included. Fewer than all only
    /// if the next one was suspended: then it and the rest are to be made again.
    pub elements: usize,
    /// [`Outcome::Done`] if all went well, else the first other outcome, or the suspension.
    pub outcome: Outcome,
}

/// One thread's access to a bus: a vCPU thread has one for each address space.
///
/// An access takes no lock, executes no locked instruction and never waits for who changes the bus; the device that is
/// accessed stays alive until the access ends. A device may have a reader of its own, but one that accesses
/// itself recurses as deep as it makes itself.
pub struct BusReader {
    table: Reader<Table>,
    meter: Arc<Meter>,
    meters: Arc<Meters>,
}

impl BusReader {
    pub(super) fn new(table: Reader<Table>, meters: &Arc<Meters>) -> Self {
        Self {
            table,
            meter: meters.meter(),
            meters: Arc::clone(meters),
        }
    }

    /// Reads `data.len()` bytes at `address`: 1, 2, 4 or 8. Unless the outcome is [`Outcome::Done`], `data` holds all ones.
    #[inline]
    pub fn read(&mut self, address: u64, data: &mut [u8]) -> Outcome {
        let table = self.table.enter();
        let Some(segment) = table.find(address) else {
            fill(data);
            self.meter.unclaimed();
            return Outcome::Unclaimed;
        };
        let Some((device, offset)) = segment.direct(address, data.len()) else {
            return indirect(&table, segment, address, Request::Read(data), &self.meter);
        };
        match device.read(offset, data) {
            Ok(()) => Outcome::Done,
            Err(error) => failed(error, Request::Read(data), &self.meter),
        }
    }

    /// Writes `data`, 1, 2, 4 or 8 bytes, at `address`.
    #[inline]
    pub fn write(&mut self, address: u64, data: &[u8]) -> Outcome {
        let table = self.table.enter();
        let Some(segment) = table.find(address) else {
            self.meter.unclaimed();
            return Outcome::Unclaimed;
        };
        let Some((device, offset)) = segment.direct(address, data.len()) else {
            return indirect(&table, segment, address, Request::Write(data), &self.meter);
        };
        match device.write(offset, data) {
            Ok(()) => Outcome::Done,
            Err(error) => failed(error, Request::Write(data), &self.meter),
        }
    }

    /// Reads elements of `width` bytes from one address into `data`, one after the other (`rep ins`). Each is an access of
    /// its own: an element may move the region that the next one would have gone to.
    pub fn read_string(&mut self, address: u64, width: usize, data: &mut [u8]) -> StringOutcome {
        if width == 0 || !data.len().is_multiple_of(width) {
            fill(data);
            return uneven(width);
        }
        string(data.chunks_exact_mut(width), |element| {
            self.read(address, element)
        })
    }

    /// Writes elements of `width` bytes from `data` to one address, one after the other (`rep outs`).
    pub fn write_string(&mut self, address: u64, width: usize, data: &[u8]) -> StringOutcome {
        if width == 0 || !data.len().is_multiple_of(width) {
            return uneven(width);
        }
        string(data.chunks_exact(width), |element| {
            self.write(address, element)
        })
    }
}

impl Drop for BusReader {
    fn drop(&mut self) {
        self.meters.retire(&self.meter);
    }
}

/// An access that the device could not carry out.
#[cold]
fn failed(error: AccessError, mut request: Request<'_>, meter: &Meter) -> Outcome {
    request.fill();
    meter.failed();
    Outcome::Failed(error)
}

/// An access that may meet hooks or doorbells, that cannot be made, or that is timed.
#[inline(never)]
fn indirect(
    table: &Table,
    segment: &Segment,
    address: u64,
    mut request: Request<'_>,
    meter: &Meter,
) -> Outcome {
    let (region, offset) = segment.region(address);
    let begun = table.accounting.then(Instant::now);
    let outcome = region.access(offset, &mut request);
    if matches!(outcome, Outcome::Failed(_)) {
        meter.failed();
    }
    if let Some(begun) = begun {
        meter.access(region, &request, &outcome, begun.elapsed());
    }
    outcome
}

fn string<T>(
    elements: impl Iterator<Item = T>,
    mut access: impl FnMut(T) -> Outcome,
) -> StringOutcome {
    let mut result = StringOutcome {
        elements: 0,
        outcome: Outcome::Done,
    };
    for element in elements {
        let outcome = access(element);
        if matches!(outcome, Outcome::Suspended(_)) {
            result.outcome = outcome;
            break;
        }
        result.elements += 1;
        if result.outcome == Outcome::Done {
            result.outcome = outcome;
        }
    }
    result
}

/// `data` is not made of elements: no element was transferred.
fn uneven(width: usize) -> StringOutcome {
    StringOutcome {
        elements: 0,
        outcome: Outcome::Failed(AccessError::Width { offset: 0, width }),
    }
}
