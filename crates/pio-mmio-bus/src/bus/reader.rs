use super::reclaim::Reader;
use super::table::Table;
use super::{AccessError, Suspension};

/// How an access ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a suspended access has to be made again"]
pub enum Outcome {
    /// The device carried it out.
    Done,
    /// No region holds the address. A read gave all ones, a write was ignored.
    Unclaimed,
    /// The access could not be carried out. A read gave all ones, a write was ignored.
    Failed(AccessError),
    /// A hook put the access off: it has not happened. The vCPU is to make the same access again once the suspension is
    /// over.
    Suspended(Suspension),
}

/// One thread's access to a bus: a vCPU thread has one for each address space.
///
/// An access takes no lock, executes no locked instruction and never waits for who changes the bus; the device that is
/// accessed stays alive until the access ends. A device may have a reader of its own, but a device that
/// reads or writes itself recurses as deep as it makes itself.
pub struct BusReader {
    pub(super) table: Reader<Table>,
}

impl BusReader {
    /// Reads `data.len()` bytes at `address`: 1, 2, 4 or 8. Unless the outcome is [`Outcome::Done`], `data` holds all ones.
    #[inline]
    pub fn read(&mut self, address: u64, data: &mut [u8]) -> Outcome {
        let table = self.table.enter();
        let outcome = match table.find(address) {
            Some(segment) => match segment.read(address, data) {
                Ok(()) => return Outcome::Done,
                Err(error) => Outcome::Failed(error),
            },
            None => Outcome::Unclaimed,
        };
        data.fill(0xff);
        outcome
    }

    /// Writes `data`, 1, 2, 4 or 8 bytes, at `address`.
    #[inline]
    pub fn write(&mut self, address: u64, data: &[u8]) -> Outcome {
        let table = self.table.enter();
        match table.find(address) {
            Some(segment) => match segment.write(address, data) {
                Ok(()) => Outcome::Done,
                Err(error) => Outcome::Failed(error),
            },
            None => Outcome::Unclaimed,
        }
    }
}
