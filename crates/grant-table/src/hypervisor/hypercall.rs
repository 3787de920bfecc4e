//! The hypercall: arguments in the guest's memory, in batches that can be interrupted.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{BATCH, Caller};
use crate::frame::Frame;
use crate::spec::grant::{
    CacheFlush, GetStatusFrames, GetVersion, QuerySize, Refusal, SetVersion, SetupTable,
    SwapGrantRef, op,
};
use crate::spec::{DomId, Errno};

/// The guest's memory at an address was not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no memory at {0:#x}")]
pub struct Fault(pub u64);

/// The guest's memory, by the addresses that its hypercalls use.
pub trait Arguments {
    /// Copies from the guest.
    ///
    /// # Errors
    ///
    /// Part of the range is not there.
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Fault>;

    /// Copies to the guest.
    ///
    /// # Errors
    ///
    /// Part of the range is not there or not writable.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Fault>;

    /// Whether something else is due: the hypercall then pauses after the batch.
    fn preempted(&self) -> bool {
        false
    }
}

/// How a hypercall ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// This is its result: 0, or a negative [`Errno`].
    Done(i64),
    /// It is to be repeated with these arguments.
    Continue {
        /// First argument: the operation.
        command: u32,
        /// Second argument: the address of the operations that are left.
        address: u64,
        /// Third argument: how many are left.
        count: u32,
    },
}

/// How a loop over operations ended.
enum Progress {
    All,
    /// Some are done, the others are left.
    Some(u32),
}

impl Caller<'_> {
    /// `HYPERVISOR_grant_table_op(command, address, count)`.
    pub fn grant_table_op(
        &self,
        guest: &dyn Arguments,
        command: u32,
        address: u64,
        count: u32,
    ) -> Outcome {
        let operations = Operations {
            guest,
            address,
            count,
        };
        let result = self.dispatch(command, &operations);
        match result {
            Err(errno) => Outcome::Done(errno.result()),
            Ok((Progress::All, _)) => Outcome::Done(0),
            Ok((Progress::Some(done), size)) => Outcome::Continue {
                command,
                address: address.wrapping_add(u64::from(done).wrapping_mul(size)),
                count: count.saturating_sub(done),
            },
        }
    }

    /// How far it came, and the size of an operation.
    fn dispatch(
        &self,
        command: u32,
        operations: &Operations<'_>,
    ) -> Result<(Progress, u64), Errno> {
        // A count that is negative as `int`, or the state of a continuation, which none of these needs.
        if i32::try_from(operations.count).is_err() || command & !op::MASK != 0 {
            return Err(Errno::Inval);
        }
        match command {
            op::MAP => operations.each(|batch| self.map(batch)),
            op::UNMAP => operations.each(|batch| self.unmap(batch)),
            op::UNMAP_AND_REPLACE => operations.each(|batch| self.unmap_and_replace(batch)),
            op::TRANSFER => operations.each(|batch| self.transfer(batch)),
            op::COPY => operations.each(|batch| self.copy(batch)),
            op::SWAP_GRANT_REF => operations.each(|batch| {
                for op in batch {
                    let op: &mut SwapGrantRef = op;
                    op.status = Refusal::status(self.swap_grant_refs(op.a, op.b));
                }
            }),
            op::CACHE_FLUSH => {
                let mut result = Ok(());
                let progress = operations.each(|batch: &mut [CacheFlush]| {
                    if result.is_ok() {
                        result = batch.iter().try_for_each(|flush| self.cache_flush(flush));
                    }
                })?;
                result.map(|()| progress)
            }
            op::SETUP_TABLE => operations.one(true, |op: &mut SetupTable| {
                let result = self.setup_table(op.domain, op.frames).and_then(|table| {
                    let frames = table
                        .frames()
                        .iter()
                        .take(usize::try_from(op.frames).unwrap_or(0));
                    operations.list(op.frame_list, frames)
                });
                op.status = Refusal::status(result);
                Ok(())
            }),
            op::GET_STATUS_FRAMES => operations.one(true, |op: &mut GetStatusFrames| {
                let frames = self.status_frames(op.domain, op.frames);
                let result =
                    frames.and_then(|frames| operations.list(op.frame_list, frames.iter()));
                op.status = Refusal::status(result);
                Ok(())
            }),
            op::QUERY_SIZE => operations.one(true, |query: &mut QuerySize| {
                self.query_size(query);
                Ok(())
            }),
            op::SET_VERSION => operations.one(false, |op: &mut SetVersion| {
                let result = self.set_version(op.version);
                op.version = self.version(DomId::SELF)?.number();
                result
            }),
            op::GET_VERSION => operations.one(false, |op: &mut GetVersion| {
                op.version = self.version(op.domain)?.number();
                Ok(())
            }),
            _ => Err(Errno::NoSys),
        }
    }
}

struct Operations<'a> {
    guest: &'a dyn Arguments,
    address: u64,
    count: u32,
}

impl Operations<'_> {
    /// Runs all operations in batches, each read once. Those before one that cannot be read are run and answered.
    fn each<T: FromBytes + IntoBytes + Immutable + KnownLayout + Copy>(
        &self,
        mut run: impl FnMut(&mut [T]),
    ) -> Result<(Progress, u64), Errno> {
        let size = u64::try_from(size_of::<T>()).map_err(|_| Errno::Fault)?;
        let mut batch = [T::new_zeroed(); BATCH];
        let mut done = 0;
        while done < self.count {
            if done > 0 && self.guest.preempted() {
                return Ok((Progress::Some(done), size));
            }
            let left = usize::try_from(self.count - done).unwrap_or(BATCH);
            let at = |index: u32| {
                let offset = u64::from(done.saturating_add(index)).checked_mul(size);
                offset
                    .and_then(|offset| self.address.checked_add(offset))
                    .ok_or(Errno::Fault)
            };
            let mut read = 0;
            let mut fault = None;
            for (slot, index) in batch.iter_mut().take(left).zip(0..) {
                let result = at(index).and_then(|at| {
                    self.guest
                        .read(at, slot.as_mut_bytes())
                        .map_err(|_| Errno::Fault)
                });
                match result {
                    Ok(()) => read = index.saturating_add(1),
                    Err(errno) => {
                        fault = Some(errno);
                        break;
                    }
                }
            }
            let ready = batch
                .get_mut(..usize::try_from(read).unwrap_or(0))
                .unwrap_or_default();
            run(ready);
            for (slot, index) in ready.iter().zip(0..) {
                let written = at(index).map(|at| self.guest.write(at, slot.as_bytes()));
                if !matches!(written, Ok(Ok(()))) {
                    fault = Some(Errno::Fault);
                }
            }
            if let Some(errno) = fault {
                return Err(errno);
            }
            done = done.saturating_add(read);
        }
        Ok((Progress::All, size))
    }

    /// Runs one operation, which is the only one if `count` matters.
    fn one<T: FromBytes + IntoBytes + Immutable + KnownLayout>(
        &self,
        count_matters: bool,
        run: impl FnOnce(&mut T) -> Result<(), Errno>,
    ) -> Result<(Progress, u64), Errno> {
        if count_matters && self.count != 1 {
            return Err(Errno::Inval);
        }
        let mut argument = T::new_zeroed();
        self.guest
            .read(self.address, argument.as_mut_bytes())
            .map_err(|_| Errno::Fault)?;
        let result = run(&mut argument);
        self.guest
            .write(self.address, argument.as_bytes())
            .map_err(|_| Errno::Fault)?;
        result.map(|()| (Progress::All, 0))
    }

    /// Writes the numbers of frames to a list of the guest's.
    fn list<'f>(&self, list: u64, frames: impl Iterator<Item = &'f Frame>) -> Result<(), Refusal> {
        let mut at = Some(list);
        for frame in frames {
            let address = at.ok_or(Refusal::BadVirtualAddress)?;
            self.guest
                .write(address, &frame.number().to_le_bytes())
                .map_err(|_| Refusal::BadVirtualAddress)?;
            at = address.checked_add(8);
        }
        Ok(())
    }
}
