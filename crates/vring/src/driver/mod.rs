//! The driver side: buffers are made available and come back used.

mod packed;
mod split;

use thiserror::Error;
use vm_memory::{GuestAddress, GuestAddressSpace};

use crate::config::QueueConfig;
use crate::device::StartError;
use crate::mapping::NoMemory;
use crate::spec::Features;
use packed::Packed;
use split::Split;

/// A buffer as the device sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its address, in the address space of the device.
    pub addr: GuestAddress,
    /// Its length in bytes.
    pub len: u32,
    /// Whether the device writes it, instead of reading it.
    pub writable: bool,
}

/// Buffers that cannot be made available.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AddError {
    /// No buffers at all.
    #[error("no buffers")]
    Empty,
    /// There are not enough free descriptors now.
    #[error("{wanted} descriptors wanted, {free} free")]
    Full {
        /// Descriptors needed.
        wanted: usize,
        /// Descriptors free.
        free: usize,
    },
    /// More buffers than the queue size (§2.7.5.3.1).
    #[error("{0} buffers are more than the queue size")]
    TooLong(usize),
    /// A readable buffer follows a writable one (§2.7.4.2).
    #[error("a readable buffer follows a writable one")]
    Order,
    /// A table of descriptors, but `INDIRECT_DESC` was not negotiated.
    #[error("indirect table without the feature")]
    IndirectFeature,
    /// The table is not in memory.
    #[error("indirect table: {0}")]
    Table(NoMemory),
    /// The device broke the queue.
    #[error("the queue is broken until it is reset")]
    Broken,
}

/// What a device did wrong. The queue is broken afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DeviceFault {
    /// The device broke the queue before.
    #[error("the queue is broken until it is reset")]
    Broken,
    /// The used index is ahead of what was made available.
    #[error("used index {index} is ahead of the available one; {in_flight} in flight")]
    UsedIndex {
        /// What the device wrote.
        index: u16,
        /// Chains in flight.
        in_flight: usize,
    },
    /// The device used a chain that it does not have.
    #[error("chain {0} used, which is not in flight")]
    NotInFlight(u32),
    /// The device claims to have written more than it could.
    #[error("chain {head}: {written} bytes written, {writable} writable")]
    Written {
        /// The chain.
        head: u16,
        /// What the device reported.
        written: u32,
        /// The writable bytes of the chain.
        writable: u64,
    },
}

/// A chain that came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used<T> {
    /// What was given to [`add`](DriverQueue::add).
    pub token: T,
    /// Bytes that the device wrote, from the first writable byte on.
    pub written: u32,
}

/// A chain that was made available.
struct InFlight<T> {
    token: T,
    /// Its first descriptor (split).
    first: u16,
    /// Its last descriptor (split).
    last: u16,
    /// Its descriptors in the ring.
    slots: u16,
    writable: u64,
}

/// How a chain is laid out.
#[derive(Clone, Copy)]
struct Layout<'b> {
    buffers: &'b [Buffer],
    /// Where the indirect table is, if it has one.
    table: Option<GuestAddress>,
}

impl Layout<'_> {
    /// Checks the rules that do not depend on what is free.
    #[inline(always)]
    fn check(&self, features: Features, size: u16) -> Result<(), AddError> {
        let count = self.buffers.len();
        if count == 0 {
            return Err(AddError::Empty);
        }
        if count > usize::from(size) {
            return Err(AddError::TooLong(count));
        }
        if !self.buffers.is_sorted_by_key(|buffer| buffer.writable) {
            return Err(AddError::Order);
        }
        if self.table.is_some() && !features.contains(Features::INDIRECT_DESC) {
            return Err(AddError::IndirectFeature);
        }
        Ok(())
    }

    /// Descriptors in the ring.
    #[inline(always)]
    fn slots(&self) -> u16 {
        if self.table.is_some() {
            1
        } else {
            self.slots_in_table()
        }
    }

    /// Descriptors in the table.
    fn slots_in_table(&self) -> u16 {
        u16::try_from(self.buffers.len()).unwrap_or(u16::MAX)
    }

    fn table_len(&self) -> u32 {
        u32::try_from(self.buffers.len())
            .unwrap_or(u32::MAX)
            .saturating_mul(16)
    }

    #[inline(always)]
    fn writable(&self) -> u64 {
        self.buffers
            .iter()
            .filter(|buffer| buffer.writable)
            .map(|buffer| u64::from(buffer.len))
            .sum()
    }
}

/// A virtqueue, seen from the driver. `T` is what the driver wants to have back with the buffers.
///
/// In the words of the literature: [`add`](Self::add) is add_buf, [`needs_kick`](Self::needs_kick) is kick (its first half: the
/// notification itself is the transport's), [`take`](Self::take) is get_buf, [`disable_interrupts`](Self::disable_interrupts) and
/// [`enable_interrupts`](Self::enable_interrupts) are disable_cb and enable_cb.
///
/// The device is not trusted: what it writes is checked, and nothing that it can overwrite is read back.
pub struct DriverQueue<A: GuestAddressSpace, T> {
    ring: Ring<A, T>,
    broken: bool,
}

enum Ring<A: GuestAddressSpace, T> {
    Split(Split<A, T>),
    Packed(Packed<A, T>),
}

macro_rules! each {
    ($queue:expr, $format:ident => $body:expr) => {
        match $queue {
            Ring::Split($format) => $body,
            Ring::Packed($format) => $body,
        }
    };
}

impl<A: GuestAddressSpace, T> DriverQueue<A, T> {
    /// Sets the ring up at the configured addresses, before the device is told of it. What is there is overwritten.
    pub fn new(space: A, config: &QueueConfig) -> Result<Self, StartError> {
        let size = config.validate()?;
        let ring = if config.features.contains(Features::RING_PACKED) {
            Ring::Packed(Packed::new(space, config, size)?)
        } else {
            Ring::Split(Split::new(space, config, size)?)
        };
        Ok(Self {
            ring,
            broken: false,
        })
    }

    /// Makes a chain of buffers available, the readable ones first, a descriptor in the ring for each.
    #[inline(always)]
    pub fn add(&mut self, buffers: &[Buffer], token: T) -> Result<(), AddError> {
        self.stage(
            Layout {
                buffers,
                table: None,
            },
            token,
        )?;
        self.publish();
        Ok(())
    }

    /// Makes a chain of buffers available by one descriptor that points to a table, which takes 16 bytes a buffer at `table`
    /// and must be left alone until the chain comes back.
    pub fn add_indirect(
        &mut self,
        table: GuestAddress,
        buffers: &[Buffer],
        token: T,
    ) -> Result<(), AddError> {
        self.stage(
            Layout {
                buffers,
                table: Some(table),
            },
            token,
        )?;
        self.publish();
        Ok(())
    }

    /// Makes as many of these chains available as there is room for, with one publication, and returns how many.
    pub fn add_batch<'b>(
        &mut self,
        chains: impl IntoIterator<Item = (&'b [Buffer], T)>,
    ) -> Result<usize, AddError> {
        let mut added = 0;
        for (buffers, token) in chains {
            match self.stage(
                Layout {
                    buffers,
                    table: None,
                },
                token,
            ) {
                Ok(()) => added += 1,
                Err(AddError::Full { .. }) => break,
                Err(error) => {
                    self.publish();
                    return Err(error);
                }
            }
        }
        self.publish();
        Ok(added)
    }

    #[inline(always)]
    fn stage(&mut self, layout: Layout<'_>, token: T) -> Result<(), AddError> {
        if self.broken {
            return Err(AddError::Broken);
        }
        each!(&mut self.ring, ring => ring.stage(layout, token))
    }

    #[inline(always)]
    fn publish(&mut self) {
        each!(&mut self.ring, ring => ring.publish());
    }

    /// Whether the device wants to be notified of what was made available since this was last asked (§2.7.10, §2.8.10).
    pub fn needs_kick(&mut self) -> bool {
        each!(&mut self.ring, ring => ring.needs_kick())
    }

    /// The value to be written to the device in order to notify it of queue `index`, where `NOTIFICATION_DATA` was negotiated
    /// (§2.9): the queue in bits 0 to 15, the position of the next available descriptor or index above.
    pub fn notification_data(&self, index: u16) -> u32 {
        u32::from(index) | u32::from(each!(&self.ring, ring => ring.next_position())) << 16
    }

    /// Takes a chain that the device is done with.
    #[inline(always)]
    pub fn take(&mut self) -> Result<Option<Used<T>>, DeviceFault> {
        if self.broken {
            return Err(DeviceFault::Broken);
        }
        let used = each!(&mut self.ring, ring => ring.take());
        self.broken = used.is_err();
        used
    }

    /// Tells the device that interrupts are not needed. It is a hint: they may still come.
    pub fn disable_interrupts(&mut self) {
        each!(&mut self.ring, ring => ring.disable_interrupts());
    }

    /// Asks for an interrupt at the next chain used and tells whether there is one already, for which there may be no interrupt.
    pub fn enable_interrupts(&mut self) -> bool {
        each!(&mut self.ring, ring => ring.enable_interrupts())
    }

    /// Gives the tokens of the chains in flight back, when the device is reset.
    pub fn into_tokens(self) -> impl Iterator<Item = T> {
        let in_flight = each!(self.ring, ring => ring.in_flight);
        in_flight.into_iter().flatten().map(|chain| chain.token)
    }
}

/// Ends a chain in flight, if the device may end it so.
#[inline(always)]
fn end<T>(
    in_flight: &mut [Option<InFlight<T>>],
    head: u16,
    written: Option<u32>,
) -> Result<(InFlight<T>, u32), DeviceFault> {
    let missing = DeviceFault::NotInFlight(head.into());
    let slot = in_flight.get_mut(usize::from(head)).ok_or(missing)?;
    let writable = slot.as_ref().ok_or(missing)?.writable;
    // A chain that was skipped under IN_ORDER was written completely (§2.7.9).
    let written = written.unwrap_or_else(|| u32::try_from(writable).unwrap_or(u32::MAX));
    if u64::from(written) > writable {
        return Err(DeviceFault::Written {
            head,
            written,
            writable,
        });
    }
    slot.take().map(|chain| (chain, written)).ok_or(missing)
}
