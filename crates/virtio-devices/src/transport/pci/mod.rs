mod capability;
mod interrupt;
mod parts;
mod registers;

use std::io;
use std::sync::Arc;

use pio_mmio_bus::bus::BusError;
use pio_mmio_bus::interrupt::MsiRouter;
use pio_mmio_bus::pci::{
    ConfigError, ConfigSpace, ConfigSpaceState, ConfigStateError, Decoder, IntxPin, Msix,
    MsixState, PortType, VectorsError,
};
use serde::{Deserialize, Serialize};
use vm_memory::GuestAddressSpace;

use super::spec::Isr;
use super::status::{RestoreError, TransportState};
use crate::device::VirtioDevice;
use interrupt::PciInterrupts;
pub use parts::PciParts;
use registers::{BarRegisters, layout};

/// The BAR with the virtio structures.
const BAR: u8 = 0;
/// The BAR with the MSI-X table.
const MSIX_BAR: u8 = 2;

/// Size of the BAR with the virtio structures, for this many queues.
fn bar_size(queues: usize) -> u64 {
    let doorbells = u64::from(layout::NOTIFY_MULTIPLIER) * queues as u64;
    (layout::NOTIFY + doorbells).next_power_of_two()
}

/// How a function is made.
#[derive(Clone, Copy, Debug)]
pub struct PciOptions {
    /// Where the function will sit.
    pub port: PortType,
    /// Whether VIRTIO_F_ACCESS_PLATFORM is offered: the device's addresses are translated by an IOMMU.
    pub access_platform: bool,
    /// Whether VIRTIO_F_SR_IOV is offered: the function gets virtual functions.
    pub sr_iov: bool,
}

/// Why a function could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PciError {
    /// No event descriptors are left.
    #[error("kick: {0}")]
    Kick(#[from] io::Error),
    /// More queues than there can be MSI-X vectors for.
    #[error("{0} queues are too many for MSI-X")]
    Queues(usize),
    /// MSI-X.
    #[error(transparent)]
    Vectors(#[from] VectorsError),
    /// The configuration space.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A doorbell.
    #[error("doorbell: {0}")]
    Doorbell(#[from] BusError),
}

/// Why a saved state was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PciRestoreError {
    /// What the driver has set up.
    #[error(transparent)]
    Transport(#[from] RestoreError),
    /// The configuration space.
    #[error(transparent)]
    Config(#[from] ConfigStateError),
    /// MSI-X.
    #[error(transparent)]
    Vectors(#[from] VectorsError),
    /// Another number of queues.
    #[error("vectors of {found} queues for a device of {expected}")]
    QueueCount {
        /// Queues of the device.
        expected: usize,
        /// Queues in the state.
        found: usize,
    },
}

/// The PCI transport (virtio 1.3 §4.1), not transitional: a function with the virtio structures in one memory BAR, a doorbell for each
/// queue in it, and MSI-X in another.
pub struct PciTransport<M> {
    function: Arc<ConfigSpace>,
    registers: Arc<BarRegisters<M>>,
    interrupts: Arc<PciInterrupts>,
    msix: Arc<Msix>,
}

/// What of a PCI transport outlives a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciState {
    /// What the driver has set up.
    pub transport: TransportState,
    /// ISR status.
    pub isr: u8,
    /// The vector of configuration changes.
    pub config_vector: u16,
    /// The vectors of the queues.
    pub queue_vectors: Vec<u16>,
    /// The configuration space.
    pub config_space: ConfigSpaceState,
    /// The MSI-X table.
    pub msix: MsixState,
}

impl<M: GuestAddressSpace + Send + Sync + 'static> PciTransport<M> {
    /// Makes a function of `device`, which sees guest memory as `memory`. It raises messages through `router`, or `pin` as long as
    /// the driver has not enabled MSI-X.
    ///
    /// # Errors
    /// Too many queues, no routes or event descriptors left, no room on the bus.
    pub fn new(
        device: Arc<dyn VirtioDevice<M>>,
        memory: M,
        router: &dyn MsiRouter,
        pin: Arc<IntxPin>,
        decoder: &Arc<Decoder>,
        options: PciOptions,
    ) -> Result<Self, PciError> {
        let parts = PciParts::new(device, memory, router, Some(pin), options)?;
        let function = parts.endpoint().build(decoder)?;
        parts.finish(function, decoder)
    }

    /// The function, to be put on a PCI bus.
    pub fn function(&self) -> &Arc<ConfigSpace> {
        &self.function
    }

    /// Stops all queues where they are, so that memory can be saved. Idempotent.
    pub fn pause(&self) {
        self.registers.lock().pause();
    }

    /// Carries on after [`pause`](Self::pause), [`save`](Self::save) or [`restore`](Self::restore). A ring that cannot be used any more
    /// shows as DEVICE_NEEDS_RESET.
    pub fn resume(&self) {
        self.registers.lock().resume();
    }

    /// Pauses and saves.
    pub fn save(&self) -> PciState {
        PciState {
            transport: self.registers.lock().save(),
            isr: self.interrupts.isr.pending().bits(),
            config_vector: self.interrupts.config_vector(),
            queue_vectors: self.interrupts.queue_vectors(),
            config_space: self.function.save(),
            msix: self.msix.save(),
        }
    }

    /// Takes over a saved state and stays paused.
    ///
    /// # Errors
    /// The state does not fit the function, or no driver can have brought it about. The function may have taken over a part of it then, and
    /// is to be reset or dropped.
    pub fn restore(&self, state: &PciState) -> Result<(), PciRestoreError> {
        let PciState {
            transport,
            isr,
            config_vector,
            queue_vectors,
            config_space,
            msix,
        } = state;
        let pending = Isr::from_bits(*isr).ok_or(RestoreError::Isr(*isr))?;
        let queues = self.registers.kicks().len();
        if queue_vectors.len() != queues {
            return Err(PciRestoreError::QueueCount {
                expected: queues,
                found: queue_vectors.len(),
            });
        }
        self.registers.lock().restore(transport.clone())?;
        self.function.restore(config_space)?;
        self.msix.restore(msix)?;
        self.interrupts.reset();
        self.interrupts.set_config_vector(*config_vector);
        for (queue, vector) in (0..).zip(queue_vectors) {
            self.interrupts.set_queue_vector(queue, *vector);
        }
        if !pending.is_empty() {
            self.interrupts.isr.raise(pending);
        }
        Ok(())
    }
}
