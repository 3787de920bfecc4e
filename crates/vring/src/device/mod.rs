//! The device side: chains are popped, filled and pushed back.

mod split;

use thiserror::Error;
use vm_memory::GuestAddressSpace;

use crate::chain::Chain;
use crate::config::{ConfigError, QueueConfig};
use crate::error::Error;
use crate::mapping::{Anchor, NoMemory};
use crate::state::{QueueState, StateError};
use split::SplitQueue;

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

/// A virtqueue, seen from the device.
///
/// The ring is mapped once, and chains are popped and pushed without looking up where it lies. Chains may be pushed in any
/// order, and may be in flight for as long as the I/O takes.
///
/// Whatever the driver writes, no operation panics, loops for longer than the queue is, or touches memory that the address
/// space does not offer.
pub struct Queue<A: GuestAddressSpace>(SplitQueue<A>);

impl<A: GuestAddressSpace> Queue<A> {
    /// Starts a queue, where `state` is given from where it was saved.
    ///
    /// `space` is what the ring is mapped through; the buffers are translated by the memory passed to [`pop`](Self::pop).
    pub fn new(
        space: A,
        config: &QueueConfig,
        state: Option<&QueueState>,
    ) -> Result<Self, StartError> {
        let size = config.validate()?;
        let state = state.map(|QueueState::Split(state)| state);
        SplitQueue::new(space, config, size, state).map(Self)
    }

    /// The number of descriptors.
    pub fn size(&self) -> u16 {
        self.0.size()
    }

    /// Takes the next chain that the driver made available.
    ///
    /// `memory` is a plain reference to the guest memory, for a chain that is pushed before that ends, or a
    /// [`View`](crate::View), for a chain that is kept while I/O is under way.
    pub fn pop<H: Anchor<Memory = A::M>>(&mut self, memory: &H) -> Result<Option<Chain<H>>, Error> {
        self.0.pop(memory)
    }

    /// Returns a chain of this queue to the driver, with the number of bytes that were written to it: what
    /// [`Writer::written`](crate::Writer::written) counted.
    pub fn push<H: Anchor<Memory = A::M>>(
        &mut self,
        chain: Chain<H>,
        written: u32,
    ) -> Result<(), Error> {
        self.0.push(chain, written)
    }

    /// Gives up a chain of this queue for now: [`pop`](Self::pop) returns it again, before any other. Several are put back in the
    /// reverse of the order in which they were popped.
    ///
    /// For work that needs more chains than there are, or has to wait for the host meanwhile without holding guest memory.
    pub fn put_back<H: Anchor<Memory = A::M>>(&mut self, chain: Chain<H>) -> Result<(), Error> {
        self.0.put_back(chain)
    }

    /// Whether the driver wants an interrupt for what was pushed since this was last asked (§2.7.7, §2.7.10).
    pub fn needs_interrupt(&mut self) -> Result<bool, Error> {
        self.0.needs_interrupt()
    }

    /// Tells the driver that kicks are not needed, because the queue is being served. It is a hint: kicks may still come.
    pub fn disable_kicks(&mut self) -> Result<(), Error> {
        self.0.disable_kicks()
    }

    /// Asks for a kick at the next chain and tells whether there is one already, in which case the driver may not kick for it
    /// and the queue must be served before the device sleeps. Chains that were [put back](Self::put_back) do not count.
    pub fn enable_kicks(&mut self) -> Result<bool, Error> {
        self.0.enable_kicks()
    }

    /// Forgets where the ring lies; the next operation maps it again.
    ///
    /// To be called when the address space has changed, and behind an IOMMU (`ACCESS_PLATFORM`) whenever the queue has been served:
    /// the mapping is a view of the address space that invalidations wait for.
    pub fn unmap(&mut self) {
        self.0.unmap();
    }

    /// The state from which a queue can be started again, here or elsewhere.
    pub fn save(&self) -> QueueState {
        QueueState::Split(self.0.save())
    }
}

impl<A: GuestAddressSpace> std::fmt::Debug for Queue<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("state", &self.save())
            .finish_non_exhaustive()
    }
}
