//! The side that has the device.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::{RecvFlags, recv};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    BackendReqHandler, Error as ProtocolError, GpuBackend, VhostUserBackendReqHandlerMut,
};
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;
use vring::Features;

use super::event::event;
use super::in_flight::{self, InFlightArea};
use super::memory::{MAX_REGIONS, MemoryError, MemoryTable, SharedMemory, map};
use super::ring::{Ring, base};
use crate::device::{DeviceError, DeviceEvents, DeviceType, QueueResources, VirtioDevice};
use crate::net::spec::Features as NetFeatures;
use crate::transport::status::COMMON_FEATURES;

type Device = Arc<dyn VirtioDevice<Arc<SharedMemory>>>;

/// `VHOST_F_LOG_ALL`: mark in the log what is written.
const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();
/// `VHOST_USER_F_PROTOCOL_FEATURES`: there are protocol features, and rings begin disabled.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// `VHOST_USER_SET_VRING_ENABLE`.
const ENABLE: u32 = 18;
/// Flags of a message: the version, that it is an answer, and that it wants one.
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// What this backend can do of the protocol. `REPLY_ACK` is added by the library.
const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::LOG_SHMFD)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS);

/// Features of a network device that go with its control queue, which the frontend keeps to itself.
const CONTROL_QUEUE: NetFeatures = NetFeatures::CTRL_VQ
    .union(NetFeatures::CTRL_RX)
    .union(NetFeatures::CTRL_RX_EXTRA)
    .union(NetFeatures::CTRL_VLAN)
    .union(NetFeatures::CTRL_MAC_ADDR)
    .union(NetFeatures::CTRL_GUEST_OFFLOADS);

/// Why a connection to a frontend ended, other than that the frontend went away.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VhostUserError {
    /// The message breaks the protocol, or this backend has said that it cannot do what it asks for.
    #[error(transparent)]
    Protocol(ProtocolError),
    /// Features that were not offered, or that the device does not take together.
    #[error("features {accepted:#x} are not acceptable, offered are {offered:#x}")]
    Features {
        /// What the frontend accepted.
        accepted: u64,
        /// What was offered.
        offered: u64,
    },
    /// The device has no queue with this index.
    #[error("no queue {0}")]
    NoQueue(u32),
    /// The device cannot have a queue of this size.
    #[error("queue {index} cannot have {size} descriptors")]
    QueueSize {
        /// Index of the queue.
        index: u32,
        /// The size that was asked for.
        size: u32,
    },
    /// A ring is not in shared memory.
    #[error("queue {0} is not in shared memory")]
    RingAddress(u16),
    /// Rings without an event to kick them are not polled.
    #[error("queue {0} has no event to kick it")]
    NoKick(u8),
    /// The memory table or another shared file.
    #[error("memory: {0}")]
    Memory(#[from] MemoryError),
    /// The device did not start a queue.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The tracking of what is in flight does not fit the queues.
    #[error("in-flight tracking of {queues} queues of {size} descriptors in {len:#x} bytes")]
    InFlight {
        /// Number of queues.
        queues: u16,
        /// Their size.
        size: u16,
        /// Bytes there are for it.
        len: u64,
    },
    /// A file descriptor is not what it should be.
    #[error(transparent)]
    Descriptor(#[from] io::Error),
    /// The device has no such thing.
    #[error("{0} is not offered")]
    NotOffered(&'static str),
}

impl From<VhostUserError> for ProtocolError {
    fn from(error: VhostUserError) -> Self {
        Self::ReqHandlerError(io::Error::other(error))
    }
}

impl From<ProtocolError> for VhostUserError {
    fn from(error: ProtocolError) -> Self {
        match error {
            ProtocolError::ReqHandlerError(error) => match error.downcast() {
                Ok(error) => error,
                Err(error) => Self::Descriptor(error),
            },
            error => Self::Protocol(error),
        }
    }
}

/// Serves a device to one frontend at a time.
///
/// The device's configuration space and queues are the frontend's to use. All of a network device's queues but the control queue
/// are; there the frontend answers for itself.
pub struct VhostUserBackend {
    device: Device,
    errors: Arc<Errors>,
    serving: Mutex<()>,
}

impl VhostUserBackend {
    /// A backend for `device`, to which nothing else is connected.
    pub fn new(device: Device) -> Self {
        let errors = Arc::new(Errors::default());
        device.connect(Arc::clone(&errors) as Arc<dyn DeviceEvents>);
        Self {
            device,
            errors,
            serving: Mutex::new(()),
        }
    }

    /// Serves the frontend at the other end of `stream` until it hangs up, or somebody
    /// [shuts down](UnixStream::shutdown) a clone of the stream. The device is reset when this returns, and can be served again.
    /// A second caller waits for the first.
    ///
    /// # Errors
    /// The frontend asked for what cannot be done. It was told, where it wanted to know, and is disconnected.
    pub fn serve(&self, stream: UnixStream) -> Result<(), VhostUserError> {
        let _serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner);
        let hang_up = stream.try_clone()?;
        let session = Session::new(Arc::clone(&self.device), Arc::clone(&self.errors));
        let session = Arc::new(Mutex::new(session));
        let mut requests = BackendReqHandler::from_stream(stream, Arc::clone(&session));
        let result = loop {
            match early_enable(&hang_up, &session) {
                Ok(true) => continue,
                Ok(false) => {}
                Err(error) => break Err(error),
            }
            match requests.handle_request() {
                Ok(()) | Err(ProtocolError::SocketRetry(_)) => {}
                Err(
                    ProtocolError::Disconnected
                    | ProtocolError::PartialMessage
                    | ProtocolError::SocketBroken(_),
                ) => break Ok(()),
                Err(error) => break Err(error.into()),
            }
        };
        session
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .reset();
        // Fails if the frontend has closed its end.
        let _ = hang_up.shutdown(Shutdown::Both);
        result
    }
}

/// Takes a SET_VRING_ENABLE that comes before the features. QEMU's and DPDK's network cards enable rings as soon as protocol features are
/// offered; the library insists that they are accepted first.
fn early_enable(stream: &UnixStream, session: &Mutex<Session>) -> Result<bool, VhostUserError> {
    let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
    if session.features & PROTOCOL_FEATURES != 0 {
        return Ok(false);
    }
    // A header: request, flags, and length of what follows.
    let mut header = [0; 12];
    let flags = RecvFlags::PEEK | RecvFlags::WAITALL;
    let message = |flags: u32| [ENABLE, flags, 8].map(u32::to_ne_bytes).concat();
    if recv(stream, &mut header[..], flags).is_err() {
        return Ok(false);
    }
    let acknowledge = header[..] == message(VERSION | NEED_REPLY);
    if !acknowledge && header[..] != message(VERSION) {
        return Ok(false);
    }
    let mut bytes = [0; 20];
    let mut stream = stream;
    stream.read_exact(&mut bytes)?;
    let [.., i0, i1, i2, i3, enable, _, _, _] = bytes;
    let (_, ring) = session.ring(u32::from_ne_bytes([i0, i1, i2, i3]))?;
    ring.enabled = enable != 0;
    if acknowledge && session.reply_ack {
        let answer = [message(VERSION | REPLY), vec![0; 8]].concat();
        stream.write_all(&answer)?;
    }
    Ok(true)
}

/// The frontend's descriptors for errors of its rings.
#[derive(Default)]
struct Errors(Mutex<Vec<Option<EventFd>>>);

impl Errors {
    fn lock(&self) -> MutexGuard<'_, Vec<Option<EventFd>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DeviceEvents for Errors {
    /// There is no channel on which to say so; the devices that are served do not change.
    fn config_changed(&self) {}

    fn needs_reset(&self) {
        for event in self.lock().iter().flatten() {
            // Fails only if the counter is full, and then the event is pending.
            let _ = event.write(1);
        }
    }
}

/// A connection to a frontend.
struct Session {
    device: Device,
    errors: Arc<Errors>,
    /// Features of the device that are the frontend's business.
    hidden: u64,
    features: u64,
    /// Messages that want to be acknowledged are.
    reply_ack: bool,
    memory: MemoryTable,
    log: Option<Arc<MmapRegion>>,
    in_flight: Option<InFlightArea>,
    rings: Vec<Ring>,
}

impl Session {
    fn new(device: Device, errors: Arc<Errors>) -> Self {
        let net = device.device_type() == DeviceType::NET;
        let mut session = Self {
            hidden: if net { CONTROL_QUEUE.bits() } else { 0 },
            device,
            errors,
            features: 0,
            reply_ack: false,
            memory: MemoryTable::default(),
            log: None,
            in_flight: None,
            rings: Vec::new(),
        };
        session.reset();
        *session.errors.lock() = session.rings.iter().map(|_| None).collect();
        session
    }

    /// Stops everything and forgets it, but for what is shared: memory, its log, and the descriptors for what we have to say. QEMU hands
    /// those over before it resets the device.
    fn reset(&mut self) {
        for index in 0..self.rings.len() {
            self.pause(index);
        }
        self.device.reset();
        let mut sizes = self.device.queue_max_sizes();
        if self.hidden != 0 {
            // The last is the control queue.
            sizes = sizes.split_last().map_or(sizes, |(_, data)| data);
        }
        let calls: Vec<_> = self.rings.drain(..).map(|ring| ring.call).collect();
        self.rings = sizes.iter().copied().map(Ring::new).collect();
        for (ring, call) in self.rings.iter_mut().zip(calls) {
            ring.call = call;
        }
        self.in_flight = None;
        self.features = 0;
    }

    fn offered(&self) -> u64 {
        let mut ring = COMMON_FEATURES & self.device.ring_features();
        // A network card is done with its buffers in order anyway.
        ring.set(Features::IN_ORDER, self.hidden != 0);
        ring.bits() | self.device.features() & !self.hidden | PROTOCOL_FEATURES | LOG_ALL
    }

    fn ring(&mut self, index: u32) -> Result<(usize, &mut Ring), VhostUserError> {
        let error = VhostUserError::NoQueue(index);
        let Ok(position) = usize::try_from(index) else {
            return Err(error);
        };
        match self.rings.get_mut(position) {
            Some(ring) => Ok((position, ring)),
            None => Err(error),
        }
    }

    /// Stops a ring, if it runs, such that it can go on.
    fn pause(&mut self, position: usize) {
        if let (Some(ring), Ok(index)) = (self.rings.get_mut(position), u16::try_from(position))
            && std::mem::take(&mut ring.running)
        {
            ring.state = self.device.stop_queue(index);
        }
    }

    /// Starts a ring, if it is kicked, enabled and does not run.
    fn run(&mut self, position: usize) -> Result<(), VhostUserError> {
        let (Some(ring), Ok(index)) = (self.rings.get_mut(position), u16::try_from(position))
        else {
            return Ok(());
        };
        let Some(kick) = &ring.kick else {
            return Ok(());
        };
        let enabled = ring.enabled || self.features & PROTOCOL_FEATURES == 0;
        if ring.running || !enabled {
            return Ok(());
        }
        let features = self.features & !(PROTOCOL_FEATURES | LOG_ALL);
        let missing = VhostUserError::RingAddress(index);
        let Some(config) = ring.config(&self.memory, features) else {
            return Err(missing);
        };
        let state = match ring.state.take() {
            Some(state) => state,
            None => ring.start(&self.memory, &config).ok_or(missing)?,
        };
        let in_flight = match &self.in_flight {
            Some(area) => Some(area.region(index, features)?),
            None => None,
        };
        let resources = QueueResources {
            memory: Arc::clone(self.memory.memory()),
            features,
            config,
            kick: Arc::clone(kick),
            interrupt: Arc::clone(&ring.call) as _,
            in_flight,
        };
        self.device.start_queue(index, resources, Some(state))?;
        ring.running = true;
        Ok(())
    }

    /// Makes a change that running rings must not see halfway.
    fn change(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<(), VhostUserError>,
    ) -> Result<(), ProtocolError> {
        let all = 0..self.rings.len();
        for position in all.clone() {
            self.pause(position);
        }
        change(self)?;
        for position in all {
            self.run(position)?;
        }
        Ok(())
    }

    /// Makes a change to a ring, which must not see it halfway.
    fn change_ring(
        &mut self,
        index: u32,
        change: impl FnOnce(&mut Ring),
    ) -> Result<(), ProtocolError> {
        let (position, _) = self.ring(index)?;
        self.pause(position);
        let (_, ring) = self.ring(index)?;
        change(ring);
        Ok(self.run(position)?)
    }

    fn memory_with_log(&self, table: &MemoryTable) -> Result<MemoryTable, VhostUserError> {
        let log = self.log.as_ref().filter(|_| self.features & LOG_ALL != 0);
        Ok(table.logged(log)?)
    }
}

fn optional_event(file: Option<File>) -> Result<Option<EventFd>, VhostUserError> {
    Ok(file.map(event).transpose()?)
}

impl VhostUserBackendReqHandlerMut for Session {
    fn set_owner(&mut self) -> Result<(), ProtocolError> {
        Ok(())
    }

    /// Deprecated, and to be ignored.
    fn reset_owner(&mut self) -> Result<(), ProtocolError> {
        Ok(())
    }

    fn reset_device(&mut self) -> Result<(), ProtocolError> {
        self.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64, ProtocolError> {
        Ok(self.offered())
    }

    fn set_features(&mut self, features: u64) -> Result<(), ProtocolError> {
        let offered = self.offered();
        let device = features & !(PROTOCOL_FEATURES | LOG_ALL);
        if features & !offered != 0 || !self.device.accepts(device | self.hidden) {
            let accepted = features;
            return Err(VhostUserError::Features { accepted, offered }.into());
        }
        self.change(|session| {
            session.features = features;
            session.memory = session.memory_with_log(&session.memory)?;
            Ok(())
        })
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<u64>>, ProtocolError> {
        self.change(|session| {
            let regions = regions.iter().copied().zip(files);
            session.memory = session.memory.replaced(regions)?;
            Ok(())
        })?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<(), ProtocolError> {
        let max = {
            let (position, _) = self.ring(index)?;
            self.device.queue_max_sizes().get(position).copied()
        };
        let error = VhostUserError::QueueSize { index, size: num };
        let size = u16::try_from(num).ok().filter(|size| *size != 0);
        let (Some(size), Some(max)) = (size, max) else {
            return Err(error.into());
        };
        if size > max {
            return Err(error.into());
        }
        self.change_ring(index, |ring| ring.size = size)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<(), ProtocolError> {
        self.change_ring(index, |ring| {
            ring.addresses = Some([descriptor, available, used]);
        })
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<(), ProtocolError> {
        self.change_ring(index, |ring| {
            ring.base = base;
            ring.state = None;
        })
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState, ProtocolError> {
        let (position, _) = self.ring(index)?;
        self.pause(position);
        let (_, ring) = self.ring(index)?;
        if let Some(state) = ring.state.take() {
            ring.base = base(&state);
        }
        ring.kick = None;
        Ok(VhostUserVringState::new(index, ring.base))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<(), ProtocolError> {
        let kick = optional_event(file)?.ok_or(VhostUserError::NoKick(index))?;
        self.change_ring(index.into(), |ring| ring.kick = Some(Arc::new(kick)))
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<(), ProtocolError> {
        let call = optional_event(file)?;
        let (_, ring) = self.ring(index.into())?;
        ring.call.set(call);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, file: Option<File>) -> Result<(), ProtocolError> {
        let error = optional_event(file)?;
        let (position, _) = self.ring(index.into())?;
        if let Some(slot) = self.errors.lock().get_mut(position) {
            *slot = error;
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures, ProtocolError> {
        Ok(PROTOCOL)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<(), ProtocolError> {
        let offered = (PROTOCOL | VhostUserProtocolFeatures::REPLY_ACK).bits();
        if features & !offered != 0 {
            let accepted = features;
            return Err(VhostUserError::Features { accepted, offered }.into());
        }
        self.reply_ack = features & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0;
        Ok(())
    }

    /// For a network device they are counted in pairs, as frontends do.
    fn get_queue_num(&mut self) -> Result<u64, ProtocolError> {
        let rings = self.rings.len() as u64;
        let net = self.device.device_type() == DeviceType::NET;
        Ok(if net { rings / 2 } else { rings })
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<(), ProtocolError> {
        self.change_ring(index, |ring| ring.enabled = enable)
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _: VhostUserConfigFlags,
    ) -> Result<Vec<u8>, ProtocolError> {
        // The library allows up to 256 bytes.
        let mut data = vec![0; usize::try_from(size.min(256)).unwrap_or(0)];
        self.device.read_config(offset.into(), &mut data);
        Ok(data)
    }

    fn set_config(
        &mut self,
        offset: u32,
        data: &[u8],
        _: VhostUserConfigFlags,
    ) -> Result<(), ProtocolError> {
        self.device.write_config(offset.into(), data);
        Ok(())
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<(), ProtocolError> {
        Err(VhostUserError::NotOffered("a display").into())
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File, ProtocolError> {
        Err(VhostUserError::NotOffered("a shared object").into())
    }

    fn get_inflight_fd(
        &mut self,
        wanted: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File), ProtocolError> {
        let (queues, size) = (wanted.num_queues, wanted.queue_size);
        let (len, file) = in_flight::create(queues, size, self.rings.len(), self.features)?;
        Ok((VhostUserInflight::new(len, 0, queues, size), file))
    }

    fn set_inflight_fd(
        &mut self,
        inflight: &VhostUserInflight,
        file: File,
    ) -> Result<(), ProtocolError> {
        let area = InFlightArea::new(inflight, file)?;
        self.change(|session| {
            session.in_flight = Some(area);
            Ok(())
        })
    }

    fn get_max_mem_slots(&mut self) -> Result<u64, ProtocolError> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _: Option<bool>,
    ) -> Result<Option<u64>, ProtocolError> {
        self.change(|session| {
            session.memory = session.memory.added(region, file)?;
            Ok(())
        })?;
        Ok(None)
    }

    fn remove_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
    ) -> Result<(), ProtocolError> {
        self.change(|session| {
            session.memory = session.memory.removed(region)?;
            Ok(())
        })
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>, ProtocolError> {
        Err(VhostUserError::NotOffered("device state").into())
    }

    fn check_device_state(&mut self) -> Result<(), ProtocolError> {
        Err(VhostUserError::NotOffered("device state").into())
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig, ProtocolError> {
        Ok(VhostUserShMemConfig::default())
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<(), ProtocolError> {
        let area = map(Arc::new(file), log.mmap_offset, log.mmap_size, ())
            .map_err(VhostUserError::from)?;
        self.change(|session| {
            session.log = Some(Arc::new(area));
            session.memory = session.memory_with_log(&session.memory)?;
            Ok(())
        })
    }
}
