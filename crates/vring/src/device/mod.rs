//! The device side: chains are popped, filled and pushed back.

mod in_order;
mod mapped;
mod packed;
mod resumed;
mod split;

use thiserror::Error;
use vm_memory::GuestAddressSpace;

use crate::chain::Chain;
use crate::config::{ConfigError, QueueConfig};
use crate::error::Error;
use crate::in_flight::InFlightRegion;
use crate::mapping::{Anchor, NoMemory};
use crate::spec::Features;
use crate::state::{QueueState, StateError};
use mapped::{Format, Mapped};
use packed::Packed;
use split::Split;

/// Why a queue cannot be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StartError {
    /// Size, alignment or extent.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The saved state is not one of such a queue.
    #[error("saved state: {0}")]
    State(#[from] StateError),
    /// The ring is not in accessible memory.
    #[error("ring: {0}")]
    Ring(#[from] NoMemory),
}

/// A virtqueue, seen from the device. Whether it is split or packed was negotiated, and is decided once, when it starts.
///
/// The ring is mapped once, and chains are popped and pushed without looking up where it lies. Chains may be pushed in any
/// order, and may be in flight for as long as the I/O takes; with `IN_ORDER` the queue holds back what is pushed early.
///
/// Whatever the driver writes, no operation panics, loops for longer than the queue is, or touches memory that the address
/// space does not offer.
pub struct Queue<A: GuestAddressSpace> {
    size: u16,
    ring: Ring<A>,
}

enum Ring<A: GuestAddressSpace> {
    Split(Mapped<A, Split<A::M>>),
    Packed(Mapped<A, Packed<A::M>>),
}

/// Evaluates `$body` for either format.
macro_rules! each {
    ($queue:expr, $mapped:ident => $body:expr) => {
        match $queue {
            Ring::Split($mapped) => $body,
            Ring::Packed($mapped) => $body,
        }
    };
}

impl<A: GuestAddressSpace> Queue<A> {
    /// Starts a queue, where `state` is given from where it was saved.
    ///
    /// `space` is what the ring is mapped through; the buffers are translated by the memory passed to [`pop`](Self::pop).
    pub fn new(
        space: A,
        config: &QueueConfig,
        state: Option<&QueueState>,
    ) -> Result<Self, StartError> {
        Self::start(space, config, state, None)
    }

    /// Starts a queue that keeps in `region` what is in flight. If a queue has used the region before, it starts from there, wherever
    /// that queue was when its process ended, and from `state` otherwise. What was in flight is popped again.
    pub fn tracked(
        space: A,
        config: &QueueConfig,
        state: Option<&QueueState>,
        region: InFlightRegion,
    ) -> Result<Self, StartError> {
        Self::start(space, config, state, Some(region))
    }

    fn start(
        space: A,
        config: &QueueConfig,
        state: Option<&QueueState>,
        region: Option<InFlightRegion>,
    ) -> Result<Self, StartError> {
        let size = config.validate()?;
        let ring = if config.features.contains(Features::RING_PACKED) {
            let state = match state {
                Some(QueueState::Packed(state)) => Some(state),
                Some(_) => return Err(StateError::Format.into()),
                None => None,
            };
            Ring::Packed(Mapped::new(space, config, size, state, region)?)
        } else {
            let state = match state {
                Some(QueueState::Split(state)) => Some(state),
                Some(_) => return Err(StateError::Format.into()),
                None => None,
            };
            Ring::Split(Mapped::new(space, config, size, state, region)?)
        };
        Ok(Self { size, ring })
    }

    /// The number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Takes the next chain that the driver made available.
    ///
    /// `memory` is a plain reference to the guest memory, for a chain that is pushed before that ends, or a
    /// [`View`](crate::View), for a chain that is kept while I/O is under way.
    #[inline(always)]
    pub fn pop<H: Anchor<Memory = A::M>>(&mut self, memory: &H) -> Result<Option<Chain<H>>, Error> {
        each!(&mut self.ring, mapped => mapped.with(|format, ring| format.pop(ring, memory)))
    }

    /// Returns a chain of this queue to the driver, with the number of bytes that were written to it: what
    /// [`Writer::written`](crate::Writer::written) counted.
    #[inline(always)]
    pub fn push<H: Anchor<Memory = A::M>>(
        &mut self,
        chain: Chain<H>,
        written: u32,
    ) -> Result<(), Error> {
        each!(&mut self.ring, mapped => mapped.with(|format, ring| {
            format.stage(ring, chain, written)?;
            format.publish(ring);
            Ok(())
        }))
    }

    /// Like [`push`](Self::push), but the driver sees nothing of it before [`publish`](Self::publish): one publication serves a batch.
    #[inline(always)]
    pub fn stage<H: Anchor<Memory = A::M>>(
        &mut self,
        chain: Chain<H>,
        written: u32,
    ) -> Result<(), Error> {
        each!(&mut self.ring, mapped => mapped.with(|format, ring| format.stage(ring, chain, written)))
    }

    /// Lets the driver see the chains that were staged.
    #[inline(always)]
    pub fn publish(&mut self) -> Result<(), Error> {
        each!(&mut self.ring, mapped => mapped.with(|format, ring| {
            format.publish(ring);
            Ok(())
        }))
    }

    /// Gives up a chain of this queue for now: [`pop`](Self::pop) returns it again, before any other. Several are put back in the
    /// reverse of the order in which they were popped.
    ///
    /// For work that needs more chains than there are, or has to wait for the host meanwhile without holding guest memory.
    pub fn put_back<H: Anchor<Memory = A::M>>(&mut self, chain: Chain<H>) -> Result<(), Error> {
        each!(&mut self.ring, mapped => mapped.with(|format, _| Format::<A>::put_back(format, chain)))
    }

    /// Whether the driver wants an interrupt for what it was given since this was last asked (§2.7.7, §2.8.10).
    pub fn needs_interrupt(&mut self) -> Result<bool, Error> {
        each!(&mut self.ring, mapped => mapped.with(|format, ring| Ok(format.needs_interrupt(ring))))
    }

    /// Tells the driver that kicks are not needed, because the queue is being served. It is a hint: kicks may still come.
    pub fn disable_kicks(&mut self) -> Result<(), Error> {
        each!(&mut self.ring, mapped => mapped.with(|format, ring| {
            format.disable_kicks(ring);
            Ok(())
        }))
    }

    /// Asks for a kick at the next chain and tells whether there is one already, in which case the driver may not kick for it
    /// and the queue must be served before the device sleeps. Chains that were [put back](Self::put_back) do not count.
    pub fn enable_kicks(&mut self) -> Result<bool, Error> {
        each!(&mut self.ring, mapped => mapped.with(|format, ring| format.enable_kicks(ring)))
    }

    /// Tells whether there is a chain, as [`enable_kicks`](Self::enable_kicks) does, but asks for nothing: for a device that polls for a
    /// while before it sleeps.
    pub fn has_new(&mut self) -> Result<bool, Error> {
        each!(&mut self.ring, mapped => mapped.with(|format, ring| format.has_new(ring)))
    }

    /// Forgets where the ring lies; the next operation maps it again.
    ///
    /// To be called when the address space has changed, and behind an IOMMU (`ACCESS_PLATFORM`) whenever the queue has been served:
    /// the mapping is a view of the address space that invalidations wait for.
    pub fn unmap(&mut self) {
        each!(&mut self.ring, mapped => mapped.unmap());
    }

    /// The state from which a queue can be started again, here or elsewhere. What was staged must have been published: the queue
    /// that is started from the state takes it for seen by the driver.
    pub fn save(&self) -> QueueState {
        match &self.ring {
            Ring::Split(mapped) => QueueState::Split(mapped.save()),
            Ring::Packed(mapped) => QueueState::Packed(mapped.save()),
        }
    }
}

impl<A: GuestAddressSpace> std::fmt::Debug for Queue<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("size", &self.size)
            .field("state", &self.save())
            .finish_non_exhaustive()
    }
}
