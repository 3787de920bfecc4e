//! What split and packed queues have in common: the ring is mapped until it is let go, and the first error of the driver's is the last.

use vm_memory::GuestAddressSpace;

use super::StartError;
use crate::chain::Chain;
use crate::config::QueueConfig;
use crate::error::Error;
use crate::in_flight::InFlightRegion;
use crate::mapping::{Anchor, NoMemory};

/// A ring format: the positions of the device in a ring, and what to do with the ring itself.
pub(super) trait Format<A: GuestAddressSpace>: Sized {
    /// The ring, mapped.
    type Ring;
    /// What is saved of it.
    type State;

    fn new(
        config: &QueueConfig,
        size: u16,
        state: Option<&Self::State>,
    ) -> Result<Self, StartError>;
    /// Starts as `region` says, or `state` if it is new, and keeps it up to date.
    fn tracked(
        config: &QueueConfig,
        size: u16,
        state: Option<&Self::State>,
        ring: &Self::Ring,
        region: InFlightRegion,
    ) -> Result<Self, StartError>;
    fn save(&self) -> Self::State;
    fn map(space: &A, config: &QueueConfig) -> Result<Self::Ring, NoMemory>;
    fn pop<H: Anchor<Memory = A::M>>(
        &mut self,
        ring: &Self::Ring,
        memory: &H,
    ) -> Result<Option<Chain<H>>, Error>;
    fn stage<H: Anchor<Memory = A::M>>(
        &mut self,
        ring: &Self::Ring,
        chain: Chain<H>,
        written: u32,
    ) -> Result<(), Error>;
    fn publish(&mut self, ring: &Self::Ring);
    fn put_back<H: Anchor<Memory = A::M>>(&mut self, chain: Chain<H>) -> Result<(), Error>;
    fn needs_interrupt(&mut self, ring: &Self::Ring) -> bool;
    fn disable_kicks(&mut self, ring: &Self::Ring);
    fn enable_kicks(&mut self, ring: &Self::Ring) -> Result<bool, Error>;
    fn has_new(&mut self, ring: &Self::Ring) -> Result<bool, Error>;
}

/// A queue of format `F`.
pub(super) struct Mapped<A: GuestAddressSpace, F: Format<A>> {
    /// None if it is not mapped or the queue is broken.
    ring: Option<F::Ring>,
    format: F,
    broken: bool,
    space: A,
    config: QueueConfig,
}

impl<A: GuestAddressSpace, F: Format<A>> Mapped<A, F> {
    pub(super) fn new(
        space: A,
        config: &QueueConfig,
        size: u16,
        state: Option<&F::State>,
        region: Option<InFlightRegion>,
    ) -> Result<Self, StartError> {
        let ring = F::map(&space, config)?;
        let format = match region {
            Some(region) => F::tracked(config, size, state, &ring, region)?,
            None => F::new(config, size, state)?,
        };
        Ok(Self {
            ring: Some(ring),
            format,
            broken: false,
            space,
            config: *config,
        })
    }

    pub(super) fn save(&self) -> F::State {
        self.format.save()
    }

    pub(super) fn unmap(&mut self) {
        self.ring = None;
    }

    /// Calls `f` with the mapped ring.
    #[inline(always)]
    pub(super) fn with<R>(
        &mut self,
        f: impl FnOnce(&mut F, &F::Ring) -> Result<R, Error>,
    ) -> Result<R, Error> {
        if self.ring.is_none() {
            self.map()?;
        }
        let Some(ring) = &self.ring else {
            return Err(Error::Broken);
        };
        match f(&mut self.format, ring) {
            Ok(value) => Ok(value),
            Err(error) => Err(self.failed(error)),
        }
    }

    #[cold]
    fn map(&mut self) -> Result<(), Error> {
        if self.broken {
            return Err(Error::Broken);
        }
        let ring = F::map(&self.space, &self.config).map_err(Error::Ring);
        self.ring = Some(ring.inspect_err(|_| self.broken = true)?);
        Ok(())
    }

    #[cold]
    #[inline(never)]
    fn failed(&mut self, error: Error) -> Error {
        if error.breaks() {
            self.broken = true;
            self.ring = None;
        }
        error
    }
}
