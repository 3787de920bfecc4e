use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;
use vring::{Features, InFlightRegion, Queue, QueueConfig, QueueState, StartError};

use crate::console::{ConsoleError, ConsoleState};
#[cfg(feature = "iommu")]
use crate::iommu::{IommuError, IommuState};
use crate::net::{NetError, NetState};
use crate::worker::WorkerError;

/// The virtio device ID: what kind of device this is (virtio 1.3 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceType(pub u16);

impl DeviceType {
    /// Network device (§5.1).
    pub const NET: Self = Self(1);
    /// Block device (§5.2).
    pub const BLOCK: Self = Self(2);
    /// Console device (§5.3).
    pub const CONSOLE: Self = Self(3);
    /// Entropy source (§5.4).
    pub const ENTROPY: Self = Self(4);
    /// IOMMU device (§5.13).
    pub const IOMMU: Self = Self(23);
}

/// Why a device could not start a queue.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The device has no queue with this index.
    #[error("no queue {0}")]
    NoQueue(u16),
    /// The queue runs already.
    #[error("queue {0} is already started")]
    AlreadyStarted(u16),
    /// The driver's ring, or the saved state, is not usable.
    #[error("queue {index}: {source}")]
    Ring {
        /// Index of the queue.
        index: u16,
        /// The rule that was broken.
        source: StartError,
    },
    /// The loop that would serve the queue is gone.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The host back-end failed.
    #[error("back-end: {0}")]
    Backend(#[from] io::Error),
}

/// What of a device outlives a migration, besides its queues and what its transport keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum DeviceState {
    /// Nothing. Block devices and entropy sources have no more.
    #[default]
    None,
    /// A network device's.
    Net(NetState),
    /// A console's.
    Console(ConsoleState),
    /// An IOMMU's.
    #[cfg(feature = "iommu")]
    Iommu(IommuState),
}

/// Why a device refused a saved state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceStateError {
    /// It is of another kind of device.
    #[error("saved state of another kind of device")]
    Kind,
    /// A network device's reason.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A console's reason.
    #[error(transparent)]
    Console(#[from] ConsoleError),
    /// An IOMMU's reason.
    #[cfg(feature = "iommu")]
    #[error(transparent)]
    Iommu(#[from] IommuError),
}

/// Raises the used-buffer interrupt of one queue.
///
/// The device asks the ring first whether the driver wants to be interrupted.
pub trait QueueInterrupt: Send + Sync {
    /// Tells the driver that buffers were used (virtio 1.3 §2.9).
    fn trigger(&self);
}

/// What a device tells its transport besides used buffers.
///
/// May be called from any thread, also while the transport waits in [`VirtioDevice::stop_queue`]: an implementation takes no lock
/// that is held across calls into the device.
pub trait DeviceEvents: Send + Sync {
    /// The configuration space changed: the transport counts a new generation and raises the
    /// configuration-change interrupt (virtio 1.3 §2.5.1, §4.1.4.3, §4.2.2).
    fn config_changed(&self);

    /// The device met an error that only a reset can repair, such as a malformed ring: the transport sets DEVICE_NEEDS_RESET and
    /// raises the configuration-change interrupt (virtio 1.3 §2.1.2). The device stops using the queue concerned but stays alive.
    fn needs_reset(&self);
}

/// What a queue needs to run.
pub struct QueueResources<M> {
    /// The device's view of guest memory. RAM only: a device cannot reach registers through it, its own least of all.
    pub memory: M,
    /// All negotiated feature bits, those of the device type included.
    pub features: u64,
    /// Size, addresses and ring features, as the driver set them up. Not validated: the ring's constructor does.
    pub config: QueueConfig,
    /// Signalled when the driver offers buffers. May be signalled spuriously.
    pub kick: Arc<EventFd>,
    /// Raises the queue's interrupt.
    pub interrupt: Arc<dyn QueueInterrupt>,
    /// Where to keep what is in flight for whoever serves the queue after this process. If that was used before, it tells where the
    /// queue starts.
    pub in_flight: Option<InFlightRegion>,
}

/// Starts a ring of the queue `index`.
pub(crate) fn start_ring<M: GuestAddressSpace>(
    index: u16,
    memory: M,
    config: &QueueConfig,
    state: Option<&QueueState>,
    in_flight: Option<InFlightRegion>,
) -> Result<Queue<M>, DeviceError> {
    match in_flight {
        Some(region) => Queue::tracked(memory, config, state, region),
        None => Queue::new(memory, config, state),
    }
    .map_err(|source| DeviceError::Ring { index, source })
}

/// A virtio device as a transport sees it.
///
/// All methods take `&self`: several vCPUs may read the configuration space at once. The transport never calls
/// `start_queue`, `stop_queue` and `reset` concurrently with one another.
///
/// The device offers its own feature bits; those of the ring (VIRTIO_F_RING_INDIRECT_DESC, VIRTIO_F_RING_EVENT_IDX) and
/// VIRTIO_F_VERSION_1 are offered by the transport.
pub trait VirtioDevice<M: GuestAddressSpace>: Send + Sync {
    /// What kind of device this is.
    fn device_type(&self) -> DeviceType;

    /// The device-specific feature bits that are offered (bits 0 to 23 and 50 to 127, of which the first 64 exist here; §2.2).
    fn features(&self) -> u64;

    /// What the device can do of the features that the transport offers for the ring. All, where the rings are this crate's.
    fn ring_features(&self) -> Features {
        Features::all()
    }

    /// Whether the device can work with these negotiated features, a subset of what was offered (virtio 1.3 §3.1.1, step 6).
    /// Some bits require others. If not, FEATURES_OK does not stick.
    fn accepts(&self, features: u64) -> bool {
        let _ = features;
        true
    }

    /// The greatest size of each queue, in descriptors; the length is the number of queues.
    fn queue_max_sizes(&self) -> &[u16];

    /// Connects the device to its transport. Called once, before anything else.
    fn connect(&self, events: Arc<dyn DeviceEvents>);

    /// Reads the device-specific configuration space at `offset`, in bytes. Any offset and any length: bytes
    /// that do not exist read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the device-specific configuration space at `offset`, in bytes. Any offset and any length: writes to bytes that do
    /// not exist or are read-only are ignored.
    fn write_config(&self, offset: u64, data: &[u8]);

    /// Starts queue `index`. With a state it carries on where [`stop_queue`](Self::stop_queue) left off. Buffers that are in the
    /// ring already are processed without waiting for a kick.
    ///
    /// # Errors
    /// An unknown or running queue, an unusable ring or state, a dead worker, a back-end that fails.
    fn start_queue(
        &self,
        index: u16,
        resources: QueueResources<M>,
        state: Option<QueueState>,
    ) -> Result<(), DeviceError>;

    /// Stops queue `index` and returns where it stopped; `None` if it was not running, so that calling twice is harmless. On
    /// return no I/O on guest memory is in flight for the queue and no interrupt will be raised for it.
    fn stop_queue(&self, index: u16) -> Option<QueueState>;

    /// What the driver has set up beyond queues, features and configuration. Taken while no queue runs.
    fn device_state(&self) -> DeviceState {
        DeviceState::None
    }

    /// Takes over a saved state, after [`reset`](Self::reset) and before a queue is started. An enemy may have written it.
    ///
    /// # Errors
    /// A state that no driver of this device can bring about. The device is as it was then, as far as the host lets it.
    fn restore_device_state(&self, state: DeviceState) -> Result<(), DeviceStateError> {
        match state {
            DeviceState::None => Ok(()),
            _ => Err(DeviceStateError::Kind),
        }
    }

    /// Returns the device to what it was when created. All queues are stopped already.
    fn reset(&self);
}
