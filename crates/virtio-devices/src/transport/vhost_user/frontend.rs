//! The side that has the driver: a device that is served by another process.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vhost::vhost_user::message::{
    VHOST_USER_CONFIG_SIZE, VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures,
    VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend as _};
use vhost::{VhostBackend as _, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Address as _, GuestMemory as _, GuestMemoryBackend as _, GuestMemoryRegion as _};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vring::{Features, PackedState, QueueConfig, QueueState, SplitState};

use super::ring::{base, position};
use crate::device::{
    DeviceError, DeviceEvents, DeviceType, QueueInterrupt, QueueResources, VirtioDevice,
};
use crate::dma::DmaView;
use crate::worker::{Task, Worker};

const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// The features of device types (virtio 1.3 §2.2): bits 0 to 23 and 50 to 63.
const DEVICE_FEATURES: u64 = 0xff_ffff | !0 << 50;

/// What is used of the protocol where the backend has it.
const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::RESET_DEVICE);

/// How a device that another process serves is presented.
#[derive(Clone, Debug)]
pub struct FrontendOptions {
    /// What kind of device it is: the protocol does not say.
    pub device_type: DeviceType,
    /// Queues, 1 to 256. A backend that has fewer is refused.
    pub queues: u16,
    /// Greatest size of each queue, in descriptors: a power of two. The protocol does not say that either.
    pub queue_size: u16,
    /// Device features that are not passed on, such as those of a control queue that the backend does not have.
    pub hidden_features: u64,
    /// The configuration space where the backend has none.
    pub config: Vec<u8>,
}

/// Why a backend cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrontendError {
    /// The options are out of range.
    #[error("{queues} queues of {size} descriptors")]
    Options {
        /// Number of queues.
        queues: u16,
        /// Their size.
        size: u16,
    },
    /// The backend hung up, or broke the protocol.
    #[error("backend: {0}")]
    Backend(#[from] vhost::Error),
    /// The backend offers a legacy device, or no protocol features.
    #[error(
        "the backend offers features {0:#x} only: VERSION_1 (bit 32) and PROTOCOL_FEATURES (bit 30) are needed"
    )]
    Features(u64),
    /// The backend does not tell the configuration space, without which a block device has no size.
    #[error("the backend does not offer the protocol feature CONFIG, which a block device needs")]
    NoConfig,
    /// The backend has fewer queues.
    #[error("{wanted} queues of a backend that has {present}")]
    Queues {
        /// Queues that were asked for.
        wanted: u16,
        /// Queues of the backend.
        present: u64,
    },
    /// A descriptor for events.
    #[error(transparent)]
    Event(#[from] io::Error),
}

/// A device that a vhost-user backend serves (such as qemu-storage-daemon, or
/// [`VhostUserBackend`](super::VhostUserBackend) in another process).
///
/// Guest memory must be shared: mapped from files, such as those of memfd_create(2). Kicks go to the backend without a detour; its
/// interrupts are relayed by a worker. Where the backend goes away, the driver sees a device that needs a reset.
pub struct VhostUserFrontend<M> {
    frontend: Frontend,
    options: FrontendOptions,
    offered: u64,
    protocol: VhostUserProtocolFeatures,
    queue_max_sizes: Vec<u16>,
    worker: Worker,
    events: OnceLock<Arc<dyn DeviceEvents>>,
    state: Mutex<Session<M>>,
}

/// What the backend was told since the last reset.
struct Session<M> {
    /// What it has mapped, from the first queue on.
    memory: Option<M>,
    queues: Vec<Option<Running>>,
}

struct Running {
    relay: Task<Relay>,
    packed: bool,
}

impl<M: DmaView> VhostUserFrontend<M> {
    /// The device at the other end of `stream`, whose interrupts `worker` relays.
    ///
    /// # Errors
    /// Options out of range, or a backend that cannot be used.
    pub fn new(
        stream: UnixStream,
        worker: Worker,
        options: FrontendOptions,
    ) -> Result<Self, FrontendError> {
        let (queues, size) = (options.queues, options.queue_size);
        if !(1..=256).contains(&queues) || !size.is_power_of_two() || size > 32768 {
            return Err(FrontendError::Options { queues, size });
        }
        let mut frontend = Frontend::from_stream(stream, queues.into());
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        let needed = Features::VERSION_1.bits() | PROTOCOL_FEATURES;
        if offered & needed != needed {
            return Err(FrontendError::Features(offered));
        }
        let protocol = frontend.get_protocol_features()? & PROTOCOL;
        frontend.set_protocol_features(protocol)?;
        if options.device_type == DeviceType::BLOCK
            && !protocol.contains(VhostUserProtocolFeatures::CONFIG)
            && options.config.is_empty()
        {
            return Err(FrontendError::NoConfig);
        }
        if protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        // Backends count the queues of network devices in pairs, or not; and the library takes the answer for a limit.
        if protocol.contains(VhostUserProtocolFeatures::MQ)
            && options.device_type != DeviceType::NET
        {
            let present = frontend.get_queue_num()?;
            if present < u64::from(queues) {
                return Err(FrontendError::Queues {
                    wanted: queues,
                    present,
                });
            }
        }
        Ok(Self {
            frontend,
            offered,
            protocol,
            queue_max_sizes: vec![size; queues.into()],
            worker,
            events: OnceLock::new(),
            state: Mutex::new(Session {
                memory: None,
                queues: (0..queues).map(|_| None).collect(),
            }),
            options,
        })
    }

    fn state(&self) -> MutexGuard<'_, Session<M>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a backend that hung up did to the device.
    fn lost(&self, error: &vhost::Error) {
        tracing::warn!(%error, "vhost-user backend");
        if let Some(events) = self.events.get() {
            events.needs_reset();
        }
    }

    /// Tells the backend what holds for all queues.
    fn set_up(&self, resources: &QueueResources<M>) -> Result<(), vhost::Error> {
        self.frontend
            .set_features(resources.features | PROTOCOL_FEATURES)?;
        let memory = resources.memory.memory();
        let regions = memory
            .physical_memory()
            .into_iter()
            .flat_map(|memory| memory.iter())
            .map(|region| {
                let file = region.file_offset()?;
                let guest_phys_addr = region.start_addr().raw_value();
                Some(VhostUserMemoryRegionInfo {
                    guest_phys_addr,
                    memory_size: region.len(),
                    // The backend only compares these with the rings' addresses.
                    userspace_addr: guest_phys_addr,
                    mmap_offset: file.start(),
                    mmap_handle: file.file().as_raw_fd(),
                })
            });
        let regions = regions
            .collect::<Option<Vec<_>>>()
            .ok_or(vhost::Error::InvalidGuestMemoryRegion)?;
        self.frontend.set_mem_table(&regions)?;
        Ok(())
    }

    fn start(
        &self,
        index: u16,
        config: &QueueConfig,
        size: u16,
        state: Option<&QueueState>,
        kick: &EventFd,
        relay: &Relay,
    ) -> Result<(), vhost::Error> {
        let queue = usize::from(index);
        self.frontend.set_vring_num(queue, size)?;
        let base = match state {
            Some(state) => base(state),
            None if config.features.contains(Features::RING_PACKED) => 0x8000,
            None => 0,
        };
        let [b0, b1, _, _] = base.to_le_bytes();
        self.frontend
            .set_vring_base(queue, u16::from_le_bytes([b0, b1]))?;
        self.frontend.set_vring_addr(
            queue,
            &VringConfigData {
                queue_max_size: self.options.queue_size,
                queue_size: size,
                flags: 0,
                desc_table_addr: config.desc.0,
                used_ring_addr: config.used.0,
                avail_ring_addr: config.avail.0,
                log_addr: None,
            },
        )?;
        self.frontend.set_vring_call(queue, &relay.call)?;
        self.frontend.set_vring_err(queue, &relay.error)?;
        self.frontend.set_vring_kick(queue, kick)?;
        self.frontend.clone().set_vring_enable(queue, true)
    }
}

impl<M: DmaView> VirtioDevice<M> for VhostUserFrontend<M> {
    fn device_type(&self) -> DeviceType {
        self.options.device_type
    }

    fn features(&self) -> u64 {
        self.offered & DEVICE_FEATURES & !self.options.hidden_features
    }

    fn ring_features(&self) -> Features {
        Features::from_bits_truncate(self.offered)
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_max_sizes
    }

    fn connect(&self, events: Arc<dyn DeviceEvents>) {
        let _ = self.events.set(events);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        if !self.protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            return crate::config::read_config(&self.options.config, offset, data);
        }
        data.fill(0);
        let Some((offset, size)) = config_range(self.options.device_type, offset, data.len())
        else {
            return;
        };
        // From the beginning: qemu-storage-daemon takes no notice of the offset.
        let (start, end) = (to_usize(offset), offset.saturating_add(size));
        let flags = VhostUserConfigFlags::empty();
        let zeros = vec![0; to_usize(end)];
        match self.frontend.clone().get_config(0, end, flags, &zeros) {
            Ok((_, bytes)) => {
                let bytes = bytes.iter().skip(start);
                data.iter_mut()
                    .zip(bytes)
                    .for_each(|(to, from)| *to = *from);
            }
            Err(error) => self.lost(&error),
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let Some((offset, size)) = config_range(self.options.device_type, offset, data.len())
        else {
            return;
        };
        let data = data.get(..to_usize(size)).unwrap_or_default();
        if self.protocol.contains(VhostUserProtocolFeatures::CONFIG) {
            let flags = VhostUserConfigFlags::empty();
            if let Err(error) = self.frontend.clone().set_config(offset, flags, data) {
                self.lost(&error);
            }
        }
    }

    fn start_queue(
        &self,
        index: u16,
        resources: QueueResources<M>,
        state: Option<QueueState>,
    ) -> Result<(), DeviceError> {
        let ring = |source| DeviceError::Ring { index, source };
        let size = resources
            .config
            .validate()
            .map_err(|error| ring(error.into()))?;
        let mut session = self.state();
        let slot = session.queues.get(usize::from(index));
        if slot.ok_or(DeviceError::NoQueue(index))?.is_some() {
            return Err(DeviceError::AlreadyStarted(index));
        }
        if session.memory.is_none() {
            self.set_up(&resources).map_err(io::Error::other)?;
            session.memory = Some(resources.memory.clone());
        }
        let QueueResources {
            memory: _,
            features: _,
            config,
            kick,
            interrupt,
            in_flight: _,
        } = resources;
        let relay = Relay {
            call: EventFd::new(EFD_NONBLOCK)?,
            error: EventFd::new(EFD_NONBLOCK)?,
            interrupt,
            events: self.events.get().cloned(),
        };
        self.start(index, &config, size, state.as_ref(), &kick, &relay)
            .map_err(io::Error::other)?;
        let relay = self.worker.add(relay)?;
        let packed = config.features.contains(Features::RING_PACKED);
        if let Some(slot) = session.queues.get_mut(usize::from(index)) {
            *slot = Some(Running { relay, packed });
        }
        Ok(())
    }

    /// What was in flight is done when this returns, or else the backend starts again from what it has not used.
    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        let mut session = self.state();
        let Running { relay, packed } = session.queues.get_mut(usize::from(index))?.take()?;
        let stopped = self.frontend.get_vring_base(index.into());
        if let Some(relay) = relay.remove() {
            // What came since the worker looked.
            relay.forward();
        }
        match stopped {
            Ok(base) => Some(stopped_at(base, packed)),
            Err(error) => {
                self.lost(&error);
                None
            }
        }
    }

    fn reset(&self) {
        self.state().memory = None;
        if self
            .protocol
            .contains(VhostUserProtocolFeatures::RESET_DEVICE)
            && let Err(error) = self.frontend.clone().reset_device()
        {
            tracing::warn!(%error, "vhost-user backend");
        }
    }
}

/// The part of a range of the configuration space that the backend has; `None` if nothing is left.
///
/// It must not be asked for more: a refusal is an answer that the library waits for in vain.
fn config_range(device_type: DeviceType, offset: u64, len: usize) -> Option<(u32, u32)> {
    let present = match device_type {
        // Up to max_virtqueue_pairs and mtu (§5.1.4), and up to write_zeroes_may_unmap and what pads it (§5.2.4).
        DeviceType::NET => 12,
        DeviceType::BLOCK => 60,
        _ => VHOST_USER_CONFIG_SIZE,
    };
    let offset = u32::try_from(offset).ok()?;
    let room = present.checked_sub(offset)?;
    let size = u32::try_from(len).unwrap_or(u32::MAX).min(room);
    (size != 0).then_some((offset, size))
}

/// Fits: the configuration space has 256 bytes.
fn to_usize(len: u32) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// The state of a queue that stopped with nothing in flight.
fn stopped_at(base: u32, packed: bool) -> QueueState {
    let [b0, b1, _, _] = base.to_le_bytes();
    let word = u16::from_le_bytes([b0, b1]);
    if packed {
        QueueState::Packed(PackedState {
            next_avail: position(word),
            next_used: position(word),
            in_flight: Vec::new(),
        })
    } else {
        QueueState::Split(SplitState {
            next_avail: word,
            next_used: word,
            in_flight: Vec::new(),
        })
    }
}

/// Passes the backend's interrupts and errors of one queue on.
struct Relay {
    call: EventFd,
    error: EventFd,
    interrupt: Arc<dyn QueueInterrupt>,
    events: Option<Arc<dyn DeviceEvents>>,
}

impl Relay {
    fn forward(&self) {
        if self.call.read().is_ok() {
            self.interrupt.trigger();
        }
        if self.error.read().is_ok()
            && let Some(events) = &self.events
        {
            events.needs_reset();
        }
    }
}

impl MutEventSubscriber for Relay {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for event in [&self.call, &self.error] {
            if ops.add(Events::new(event, EventSet::IN)).is_err()
                && let Some(events) = &self.events
            {
                events.needs_reset();
            }
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        self.forward();
    }
}
