use std::sync::Arc;

use vring::QueueState;
use zerocopy::IntoBytes;

use super::backend::{NetBackend, NetPort as _};
use super::control::Control;
use super::mac::MacAddress;
use super::receive::Receive;
use super::shared::{NetState, Shared};
use super::spec::{Config, Features, LinkStatus};
use super::statistics::NetStatistics;
use super::transmit::Transmit;
use crate::config::read_config;
use crate::device::{
    DeviceError, DeviceEvents, DeviceState, DeviceStateError, DeviceType, QueueResources,
    VirtioDevice,
};
use crate::dma::DmaView;
use crate::serve::ServedQueues;
use crate::worker::Worker;

/// Descriptors of a receive or transmit queue: four of the largest frames in pages.
const QUEUE_SIZE: u16 = 256;

/// Descriptors of the control queue.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// What is offered whatever the back-end can do.
const FEATURES: Features = Features::MAC
    .union(Features::STATUS)
    .union(Features::MRG_RXBUF)
    .union(Features::CTRL_VQ)
    .union(Features::CTRL_RX)
    .union(Features::CTRL_RX_EXTRA)
    .union(Features::CTRL_VLAN)
    .union(Features::CTRL_MAC_ADDR);

/// Bits and what each requires one of (§5.1.3.1).
const REQUIREMENTS: [(Features, Features); 12] = [
    (Features::GUEST_TSO4, Features::GUEST_CSUM),
    (Features::GUEST_TSO6, Features::GUEST_CSUM),
    (
        Features::GUEST_ECN,
        Features::GUEST_TSO4.union(Features::GUEST_TSO6),
    ),
    (Features::HOST_TSO4, Features::CSUM),
    (Features::HOST_TSO6, Features::CSUM),
    (
        Features::HOST_ECN,
        Features::HOST_TSO4.union(Features::HOST_TSO6),
    ),
    (Features::CTRL_GUEST_OFFLOADS, Features::CTRL_VQ),
    (Features::CTRL_RX, Features::CTRL_VQ),
    (Features::CTRL_RX_EXTRA, Features::CTRL_VQ),
    (Features::CTRL_VLAN, Features::CTRL_VQ),
    (Features::MQ, Features::CTRL_VQ),
    (Features::CTRL_MAC_ADDR, Features::CTRL_VQ),
];

/// A network device (§5.1) between a driver and a [`NetBackend`].
///
/// Queue pair `i` is served by worker `i` modulo the number of workers, the control queue by the first.
pub struct Net<B: NetBackend> {
    shared: Arc<Shared<B>>,
    queues: ServedQueues,
    workers: Vec<Worker>,
    mac: MacAddress,
    offered: Features,
    queue_max_sizes: Vec<u16>,
}

/// Why a network device could not be made or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// It takes 1 to 0x8000 queue pairs.
    #[error("a network device has 1 to 32768 queue pairs, not {0}")]
    QueuePairs(usize),
    /// Nobody would serve it.
    #[error("a network device needs a worker")]
    NoWorker,
    /// A station has an address of its own.
    #[error("{0} is not the address of one station")]
    Mac(MacAddress),
    /// A saved state with features that are not offered.
    #[error("saved features {0:?} are not offered")]
    Features(Features),
    /// A saved state with offloads that were not negotiated.
    #[error("saved receive offloads {0:?} were not negotiated")]
    Offloads(Features),
    /// A saved filter with more entries than a driver can set.
    #[error("saved receive filter does not fit")]
    Filter,
    /// The back-end failed.
    #[error("back-end: {0}")]
    Backend(#[from] std::io::Error),
}

impl<B: NetBackend> Net<B> {
    /// A device with this address.
    ///
    /// # Errors
    /// A back-end with too few or too many ports, or one that fails; no worker; a group's address.
    pub fn new(backend: B, mac: MacAddress, workers: Vec<Worker>) -> Result<Self, NetError> {
        let ports = backend.ports().len();
        let pairs = u16::try_from(ports)
            .ok()
            .filter(|pairs| (1..=0x8000).contains(pairs))
            .ok_or(NetError::QueuePairs(ports))?;
        if workers.is_empty() {
            return Err(NetError::NoWorker);
        }
        if mac.is_multicast() {
            return Err(NetError::Mac(mac));
        }
        let offloads = backend.offloads() & (Features::GUEST_OFFLOADS | Features::HOST_OFFLOADS);
        let mut offered = FEATURES | offloads;
        offered.set(Features::MQ, pairs > 1);
        offered.set(
            Features::CTRL_GUEST_OFFLOADS,
            offloads.intersects(Features::GUEST_OFFLOADS),
        );
        let mut queue_max_sizes = vec![QUEUE_SIZE; 2 * ports];
        queue_max_sizes.push(CONTROL_QUEUE_SIZE);
        let queues = ServedQueues::new(queue_max_sizes.len());
        let shared = Shared::new(backend, mac);
        shared.apply(&shared.settings())?;
        Ok(Self {
            shared: Arc::new(shared),
            queues,
            workers,
            mac,
            offered,
            queue_max_sizes,
        })
    }

    /// The host's side.
    pub fn backend(&self) -> &B {
        &self.shared.backend
    }

    /// Frames so far.
    pub fn statistics(&self) -> NetStatistics {
        self.shared.counters.statistics()
    }

    /// What the driver has set up. To be taken while no queue runs.
    pub fn save(&self) -> NetState {
        self.shared.settings().clone()
    }

    /// Takes over a saved state, before a queue is started.
    ///
    /// # Errors
    /// A state that no driver of this device can bring about, or a back-end that fails. The device is as it was then, but for a
    /// back-end that failed halfway.
    pub fn restore(&self, state: NetState) -> Result<(), NetError> {
        let features = state.features.unwrap_or_default();
        if !self.offered.contains(features) || !requirements_met(features) {
            return Err(NetError::Features(features));
        }
        if !(features & Features::GUEST_OFFLOADS).contains(state.guest_offloads) {
            return Err(NetError::Offloads(state.guest_offloads));
        }
        let ports = if features.contains(Features::MQ) {
            self.backend().ports().len()
        } else {
            1
        };
        if !(1..=ports).contains(&usize::from(state.queue_pairs)) {
            return Err(NetError::QueuePairs(usize::from(state.queue_pairs)));
        }
        if !state.filter.fits(features) {
            return Err(NetError::Filter);
        }
        let mut settings = self.shared.settings_mut();
        self.shared.apply(&state)?;
        *settings = state;
        Ok(())
    }
}

fn requirements_met(features: Features) -> bool {
    REQUIREMENTS
        .iter()
        .all(|(bit, one_of)| !features.contains(*bit) || features.intersects(*one_of))
}

impl<M, B> VirtioDevice<M> for Net<B>
where
    M: DmaView,
    B: NetBackend,
{
    fn device_state(&self) -> DeviceState {
        DeviceState::Net(self.save())
    }

    fn restore_device_state(&self, state: DeviceState) -> Result<(), DeviceStateError> {
        match state {
            DeviceState::Net(state) => Ok(self.restore(state)?),
            _ => Err(DeviceStateError::Kind),
        }
    }

    fn device_type(&self) -> DeviceType {
        DeviceType::NET
    }

    fn features(&self) -> u64 {
        self.offered.bits()
    }

    fn accepts(&self, features: u64) -> bool {
        requirements_met(Features::from_bits_truncate(features))
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_max_sizes
    }

    fn connect(&self, events: Arc<dyn DeviceEvents>) {
        self.queues.connect(events);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = Config {
            mac: self.shared.settings().filter.mac.0,
            status: LinkStatus::LINK_UP.bits().into(),
            max_virtqueue_pairs: u16::try_from(self.shared.backend.ports().len())
                .unwrap_or(u16::MAX)
                .into(),
        };
        read_config(config.as_bytes(), offset, data);
    }

    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    fn start_queue(
        &self,
        index: u16,
        resources: QueueResources<M>,
        state: Option<QueueState>,
    ) -> Result<(), DeviceError> {
        let features = Features::from_bits_truncate(resources.features);
        let pairs = if features.contains(Features::MQ) {
            self.shared.backend.ports().len()
        } else {
            1
        };
        let pair = usize::from(index / 2);
        let port = self
            .shared
            .backend
            .ports()
            .get(pair)
            .filter(|_| pair < pairs);
        let control = usize::from(index) == 2 * pairs && features.contains(Features::CTRL_VQ);
        let worker = if control {
            0
        } else {
            pair % self.workers.len()
        };
        let worker = self
            .workers
            .get(worker)
            .ok_or(DeviceError::NoQueue(index))?;
        let shared = Arc::clone(&self.shared);
        let queues = &self.queues;
        match port {
            _ if control => {
                self.shared.negotiate(features)?;
                queues.start(
                    index,
                    worker,
                    Control::new(shared, features),
                    resources,
                    state,
                )
            }
            Some(port) => {
                self.shared.negotiate(features)?;
                let port = Arc::clone(port);
                if index.is_multiple_of(2) {
                    if !features.contains(Features::CTRL_VQ) {
                        // Nobody will say how many pairs are used: those are that start.
                        port.set_enabled(true)?;
                    }
                    queues.start(
                        index,
                        worker,
                        Receive {
                            shared,
                            port,
                            features,
                        },
                        resources,
                        state,
                    )
                } else {
                    queues.start(index, worker, Transmit { shared, port }, resources, state)
                }
            }
            None => Err(DeviceError::NoQueue(index)),
        }
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.queues.stop(index)
    }

    fn reset(&self) {
        let mut settings = self.shared.settings_mut();
        *settings = NetState::new(self.mac);
        // A back-end that fails now fails again when the next driver needs it, and says so then.
        let _ = self.shared.apply(&settings);
    }
}
