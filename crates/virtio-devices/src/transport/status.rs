use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use vm_memory::{GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vring::{Features, QueueConfig, QueueState};

use super::spec::Status;
use crate::device::{
    DeviceError, DeviceEvents, DeviceState, DeviceStateError, QueueInterrupt, QueueResources,
    VirtioDevice,
};

/// The features that come from the ring and the transport rather than the device type.
pub(super) const COMMON_FEATURES: Features = Features::INDIRECT_DESC
    .union(Features::EVENT_IDX)
    .union(Features::VERSION_1)
    .union(Features::RING_PACKED)
    .union(Features::RING_RESET);

/// How a transport raises interrupts.
pub(super) trait Interrupts: Send + Sync {
    /// Buffers of `queue` were used.
    fn used(&self, queue: u16);
    /// The configuration changed, or the device needs a reset.
    fn config(&self);
}

/// What changes without the transport's lock: a device may report while the transport waits for it.
pub(super) struct Signals {
    status: AtomicU8,
    generation: AtomicU32,
    interrupts: Arc<dyn Interrupts>,
}

impl Signals {
    pub(super) fn status(&self) -> Status {
        Status::from_bits_retain(self.status.load(Ordering::Acquire))
    }

    /// Changes whenever the configuration space does (virtio 1.3 §2.5.1).
    pub(super) fn generation(&self) -> u32 {
        self.generation.load(Ordering::Acquire)
    }

    fn set(&self, bits: Status) {
        self.status.fetch_or(bits.bits(), Ordering::AcqRel);
    }
}

impl DeviceEvents for Signals {
    fn config_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        if self.status().contains(Status::DRIVER_OK) {
            self.interrupts.config();
        }
    }

    fn needs_reset(&self) {
        // A device that was reset meanwhile has recovered; a status other than 0 would tell the driver that it has not.
        let set = |status| (status != 0).then_some(status | Status::DEVICE_NEEDS_RESET.bits());
        let _ = self
            .status
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, set);
        if self.status().contains(Status::DRIVER_OK) {
            self.interrupts.config();
        }
    }
}

struct UsedInterrupt {
    interrupts: Arc<dyn Interrupts>,
    queue: u16,
}

impl QueueInterrupt for UsedInterrupt {
    fn trigger(&self) {
        self.interrupts.used(self.queue);
    }
}

/// The registers of one queue, by their names in PCI's common configuration (virtio 1.3 §4.1.4.3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSetupState {
    /// Size in descriptors.
    pub size: u16,
    /// Descriptor area.
    pub desc: u64,
    /// Driver area.
    pub driver: u64,
    /// Device area.
    pub device: u64,
    /// Whether the driver has enabled the queue.
    pub enabled: bool,
    /// Where the queue stopped, if it ran.
    pub ring: Option<QueueState>,
}

impl QueueSetupState {
    fn new(max_size: u16) -> Self {
        Self {
            size: max_size,
            desc: 0,
            driver: 0,
            device: 0,
            enabled: false,
            ring: None,
        }
    }
}

/// What the driver has set up, common to all transports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// The device status field.
    pub status: u8,
    /// Configuration generation.
    pub generation: u32,
    /// Which word of the offered features is visible.
    pub device_feature_select: u32,
    /// Which word of the accepted features is visible.
    pub driver_feature_select: u32,
    /// The accepted features.
    pub driver_features: u64,
    /// Which queue's registers are visible.
    pub queue_select: u32,
    /// The queues.
    pub queues: Vec<QueueSetupState>,
    /// What the device itself keeps.
    pub device: DeviceState,
}

/// Why a saved state was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// A status that no driver can bring about.
    #[error("device status {0:#x} is impossible")]
    Status(u8),
    /// Features that are not offered, or that the device does not take together.
    #[error("features {accepted:#x} are not acceptable, offered are {offered:#x}")]
    Features {
        /// What the state says was accepted.
        accepted: u64,
        /// What this device offers.
        offered: u64,
    },
    /// Another number of queues.
    #[error("state of {found} queues for a device of {expected}")]
    QueueCount {
        /// Queues of the device.
        expected: usize,
        /// Queues in the state.
        found: usize,
    },
    /// A queue with registers that no driver can bring about.
    #[error("queue {0}: impossible registers")]
    Queue(usize),
    /// The device refused its part.
    #[error(transparent)]
    Device(#[from] DeviceStateError),
    /// The pending interrupt causes have bits that do not exist.
    #[error("pending interrupt causes {0:#x} do not exist")]
    Isr(u8),
}

/// The device initialization protocol (virtio 1.3 §2.1, §3.1): what the driver may write when, and what that does.
///
/// A write that the protocol does not allow is ignored, so that reading back shows the old value.
pub(super) struct StatusMachine<M> {
    device: Arc<dyn VirtioDevice<M>>,
    memory: M,
    offered: Features,
    kicks: Arc<[Arc<EventFd>]>,
    signals: Arc<Signals>,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    queue_select: u32,
    queues: Vec<QueueSetupState>,
    /// Queues do not run although the status says so: between `pause` and `resume`.
    paused: bool,
    /// Nor do they while the device may not reach memory.
    bus_master: bool,
}

impl<M: GuestAddressSpace> StatusMachine<M> {
    /// `extra` are features that the platform adds, such as ACCESS_PLATFORM.
    pub(super) fn new(
        device: Arc<dyn VirtioDevice<M>>,
        memory: M,
        extra: Features,
        interrupts: Arc<dyn Interrupts>,
    ) -> io::Result<Self> {
        let signals = Arc::new(Signals {
            status: AtomicU8::new(0),
            generation: AtomicU32::new(0),
            interrupts,
        });
        device.connect(Arc::clone(&signals) as Arc<dyn DeviceEvents>);
        let max_sizes = device.queue_max_sizes();
        let kicks = max_sizes
            .iter()
            .map(|_| EventFd::new(EFD_NONBLOCK).map(Arc::new))
            .collect::<io::Result<_>>()?;
        Ok(Self {
            queues: max_sizes
                .iter()
                .copied()
                .map(QueueSetupState::new)
                .collect(),
            offered: COMMON_FEATURES & device.ring_features()
                | extra
                | Features::from_bits_retain(device.features()),
            device,
            memory,
            kicks,
            signals,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            queue_select: 0,
            paused: false,
            bus_master: true,
        })
    }

    pub(super) fn device(&self) -> &Arc<dyn VirtioDevice<M>> {
        &self.device
    }

    pub(super) fn kicks(&self) -> &Arc<[Arc<EventFd>]> {
        &self.kicks
    }

    pub(super) fn signals(&self) -> &Arc<Signals> {
        &self.signals
    }

    pub(super) fn status(&self) -> Status {
        self.signals.status()
    }

    /// Writes the status field. Bits that the driver may not set now do not stick; bits are never cleared but by zero, which resets.
    pub(super) fn write_status(&mut self, value: u8) {
        if value == 0 {
            return self.reset();
        }
        let requested = Status::from_bits_truncate(value) - Status::DEVICE_NEEDS_RESET;
        let current = self.status();
        if current.contains(Status::FAILED)
            || !requested.contains(current - Status::DEVICE_NEEDS_RESET)
        {
            return;
        }
        let wanted = requested - current;
        if wanted.contains(Status::FAILED) {
            return self.signals.set(Status::FAILED);
        }
        // The order of §3.1.1; each step needs the one before.
        let steps = [
            Status::ACKNOWLEDGE,
            Status::DRIVER,
            Status::FEATURES_OK,
            Status::DRIVER_OK,
        ];
        for step in steps {
            if self.status().contains(step) {
                continue;
            }
            let allowed = wanted.contains(step)
                && match step {
                    Status::FEATURES_OK => self.features_acceptable(self.driver_features),
                    Status::DRIVER_OK => !self.status().contains(Status::DEVICE_NEEDS_RESET),
                    _ => true,
                };
            if !allowed {
                return;
            }
            self.signals.set(step);
            if step == Status::DRIVER_OK {
                self.start_enabled_queues();
            }
        }
    }

    fn features_acceptable(&self, features: u64) -> bool {
        let features = Features::from_bits_retain(features);
        self.offered.contains(features)
            && features.contains(Features::VERSION_1)
            && self.device.accepts(features.bits())
    }

    /// Device reset (§2.4). When it returns, no queue runs.
    pub(super) fn reset(&mut self) {
        let Self {
            device,
            memory: _,
            offered: _,
            kicks: _,
            signals,
            device_feature_select,
            driver_feature_select,
            driver_features,
            queue_select,
            queues,
            paused,
            bus_master: _,
        } = self;
        for (index, (queue, max_size)) in (0..).zip(queues.iter_mut().zip(device.queue_max_sizes()))
        {
            device.stop_queue(index);
            *queue = QueueSetupState::new(*max_size);
        }
        device.reset();
        *device_feature_select = 0;
        *driver_feature_select = 0;
        *driver_features = 0;
        *queue_select = 0;
        *paused = false;
        signals.status.store(0, Ordering::Release);
    }

    pub(super) fn device_feature_select(&self) -> u32 {
        self.device_feature_select
    }

    pub(super) fn driver_feature_select(&self) -> u32 {
        self.driver_feature_select
    }

    /// The selected word of the accepted features.
    pub(super) fn driver_features(&self) -> u32 {
        feature_word(self.driver_features, self.driver_feature_select)
    }

    pub(super) fn queue_select(&self) -> u32 {
        self.queue_select
    }

    pub(super) fn set_device_feature_select(&mut self, word: u32) {
        self.device_feature_select = word;
    }

    pub(super) fn set_driver_feature_select(&mut self, word: u32) {
        self.driver_feature_select = word;
    }

    /// The selected word of the offered features.
    pub(super) fn device_features(&self) -> u32 {
        feature_word(self.offered.bits(), self.device_feature_select)
    }

    /// Accepts features (§3.1.1, step 4): after DRIVER, before FEATURES_OK.
    pub(super) fn set_driver_features(&mut self, value: u32) {
        let status = self.status();
        if !status.contains(Status::DRIVER)
            || status.intersects(Status::FEATURES_OK | Status::FAILED)
        {
            return;
        }
        let [low, high] = [
            self.driver_features & 0xffff_ffff,
            self.driver_features >> 32,
        ];
        self.driver_features = match self.driver_feature_select {
            0 => high << 32 | u64::from(value),
            1 => u64::from(value) << 32 | low,
            _ => return,
        };
    }

    pub(super) fn select_queue(&mut self, index: u32) {
        self.queue_select = index;
    }

    /// The registers of the selected queue; `None` if there is no such queue.
    pub(super) fn queue(&self) -> Option<&QueueSetupState> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    /// The greatest size of the selected queue, 0 if there is no such queue.
    pub(super) fn queue_max_size(&self) -> u16 {
        usize::try_from(self.queue_select)
            .ok()
            .and_then(|index| self.device.queue_max_sizes().get(index).copied())
            .unwrap_or(0)
    }

    /// Changes the selected queue's registers, if it exists and may be set up now: after FEATURES_OK and before the queue is
    /// enabled, and once the driver is live only if queues can be reset one by one.
    pub(super) fn set_up_queue(&mut self, change: impl FnOnce(&mut QueueSetupState)) {
        if !self.queue_can_be_enabled() {
            return;
        }
        if let Ok(index) = usize::try_from(self.queue_select)
            && let Some(queue) = self.queues.get_mut(index)
            && !queue.enabled
        {
            change(queue);
        }
    }

    /// Sets the selected queue's size; values the ring cannot have are ignored.
    pub(super) fn set_queue_size(&mut self, size: u32) {
        let max = self.queue_max_size();
        let packed = self.negotiated(Features::RING_PACKED);
        if let Ok(size) = u16::try_from(size)
            && (1..=max).contains(&size)
            && (packed || size.is_power_of_two())
        {
            self.set_up_queue(|queue| queue.size = size);
        }
    }

    /// Enables the selected queue. It runs once the driver is live.
    pub(super) fn enable_queue(&mut self) {
        let mut changed = false;
        self.set_up_queue(|queue| {
            queue.enabled = true;
            changed = true;
        });
        if changed && self.status().contains(Status::DRIVER_OK) {
            self.start_queue(self.queue_select);
        }
    }

    /// Stops the selected queue and forgets its position (MMIO's QueueReady = 0).
    pub(super) fn disable_queue(&mut self) {
        if let Some((index, queue)) = u16::try_from(self.queue_select)
            .ok()
            .and_then(|index| Some((index, self.queues.get_mut(usize::from(index))?)))
        {
            self.device.stop_queue(index);
            queue.enabled = false;
            queue.ring = None;
        }
    }

    /// Resets the selected queue (§2.6.1), if the driver accepted VIRTIO_F_RING_RESET.
    pub(super) fn reset_queue(&mut self) {
        let max = self.queue_max_size();
        if self.negotiated(Features::RING_RESET) && max != 0 {
            self.disable_queue();
            self.set_up_queue(|queue| *queue = QueueSetupState::new(max));
        }
    }

    /// Whether these features were accepted and negotiation is complete.
    fn negotiated(&self, features: Features) -> bool {
        self.status().contains(Status::FEATURES_OK)
            && Features::from_bits_retain(self.driver_features).contains(features)
    }

    fn queue_can_be_enabled(&self) -> bool {
        let status = self.status();
        status.contains(Status::FEATURES_OK)
            && !status.intersects(Status::FAILED | Status::DEVICE_NEEDS_RESET)
            && (!status.contains(Status::DRIVER_OK) || self.negotiated(Features::RING_RESET))
    }

    fn start_enabled_queues(&mut self) {
        for index in (0..).take(self.queues.len()) {
            self.start_queue(index);
        }
    }

    /// Starts a queue if it is enabled. The driver sees a failure as DEVICE_NEEDS_RESET.
    fn start_queue(&mut self, index: u32) {
        if let Err(error) = self.try_start_queue(index) {
            tracing::debug!(index, %error, "queue not started");
            self.signals.needs_reset();
        }
    }

    fn try_start_queue(&mut self, index: u32) -> Result<(), DeviceError> {
        let Ok(index) = u16::try_from(index) else {
            return Ok(());
        };
        let position = usize::from(index);
        let (Some(queue), Some(kick)) = (self.queues.get_mut(position), self.kicks.get(position))
        else {
            return Ok(());
        };
        if !queue.enabled || self.paused || !self.bus_master {
            return Ok(());
        }
        let resources = QueueResources {
            memory: self.memory.clone(),
            features: self.driver_features,
            config: QueueConfig {
                size: u32::from(queue.size),
                desc: GuestAddress(queue.desc),
                avail: GuestAddress(queue.driver),
                used: GuestAddress(queue.device),
                features: Features::from_bits_truncate(self.driver_features),
            },
            kick: Arc::clone(kick),
            interrupt: Arc::new(UsedInterrupt {
                interrupts: Arc::clone(&self.signals.interrupts),
                queue: index,
            }),
            in_flight: None,
        };
        self.device.start_queue(index, resources, queue.ring.take())
    }

    /// Whether the device may reach memory. While it may not its queues stand where they were.
    pub(super) fn set_bus_master(&mut self, enabled: bool) {
        if self.bus_master == enabled {
            return;
        }
        self.bus_master = enabled;
        if enabled {
            self.start_live_queues();
        } else {
            self.stop_queues();
        }
    }

    /// Stops all queues where they are. Idempotent.
    pub(super) fn pause(&mut self) {
        self.stop_queues();
        self.paused = true;
    }

    fn stop_queues(&mut self) {
        for (index, queue) in (0..).zip(&mut self.queues) {
            if let Some(ring) = self.device.stop_queue(index) {
                queue.ring = Some(ring);
            }
        }
    }

    /// Carries on after `pause` or `restore`.
    pub(super) fn resume(&mut self) {
        self.paused = false;
        self.start_live_queues();
    }

    /// Starts the enabled queues of a live driver, as far as they may run.
    fn start_live_queues(&mut self) {
        let status = self.status();
        if status.contains(Status::DRIVER_OK) && !status.contains(Status::DEVICE_NEEDS_RESET) {
            self.start_enabled_queues();
        }
    }

    /// Pauses, and returns what the driver has set up.
    pub(super) fn save(&mut self) -> TransportState {
        self.pause();
        let Self {
            device,
            memory: _,
            offered: _,
            kicks: _,
            signals,
            device_feature_select,
            driver_feature_select,
            driver_features,
            queue_select,
            queues,
            paused: _,
            bus_master: _,
        } = self;
        TransportState {
            status: signals.status().bits(),
            generation: signals.generation(),
            device_feature_select: *device_feature_select,
            driver_feature_select: *driver_feature_select,
            driver_features: *driver_features,
            queue_select: *queue_select,
            queues: queues.clone(),
            device: device.device_state(),
        }
    }

    /// Takes over a saved state and stays paused. The state is checked as if an enemy had written it; rings are checked when they
    /// start. If it is the device that refuses its part, the machine is reset; else it is as before.
    pub(super) fn restore(&mut self, state: TransportState) -> Result<(), RestoreError> {
        let TransportState {
            status: bits,
            generation,
            device_feature_select,
            driver_feature_select,
            driver_features,
            queue_select,
            queues,
            device,
        } = state;
        let status = Status::from_bits(bits).ok_or(RestoreError::Status(bits))?;
        let order = [
            Status::ACKNOWLEDGE,
            Status::DRIVER,
            Status::FEATURES_OK,
            Status::DRIVER_OK,
        ];
        if !order.windows(2).all(|pair| {
            matches!(pair, [before, after] if status.contains(*before) || !status.contains(*after))
        }) {
            return Err(RestoreError::Status(bits));
        }
        let negotiated = status.contains(Status::FEATURES_OK);
        if negotiated && !self.features_acceptable(driver_features)
            || !status.contains(Status::DRIVER) && driver_features != 0
        {
            return Err(RestoreError::Features {
                accepted: driver_features,
                offered: self.offered.bits(),
            });
        }
        let max_sizes = self.device.queue_max_sizes();
        if queues.len() != max_sizes.len() {
            return Err(RestoreError::QueueCount {
                expected: max_sizes.len(),
                found: queues.len(),
            });
        }
        let packed = negotiated
            && Features::from_bits_retain(driver_features).contains(Features::RING_PACKED);
        for (index, (queue, max)) in queues.iter().zip(max_sizes).enumerate() {
            let size_fits = queue.size == *max
                || (1..=*max).contains(&queue.size) && (packed || queue.size.is_power_of_two());
            let untouched = *queue == QueueSetupState::new(*max);
            let ring_fits =
                queue.ring.is_none() || queue.enabled && status.contains(Status::DRIVER_OK);
            if !size_fits || !ring_fits || !negotiated && !untouched {
                return Err(RestoreError::Queue(index));
            }
        }
        self.reset();
        self.paused = true;
        self.device.restore_device_state(device)?;
        self.device_feature_select = device_feature_select;
        self.driver_feature_select = driver_feature_select;
        self.driver_features = driver_features;
        self.queue_select = queue_select;
        self.queues = queues;
        self.signals.generation.store(generation, Ordering::Release);
        self.signals.status.store(bits, Ordering::Release);
        Ok(())
    }
}

fn feature_word(features: u64, word: u32) -> u32 {
    let [b0, b1, b2, b3, b4, b5, b6, b7] = features.to_le_bytes();
    match word {
        0 => u32::from_le_bytes([b0, b1, b2, b3]),
        1 => u32::from_le_bytes([b4, b5, b6, b7]),
        _ => 0,
    }
}
