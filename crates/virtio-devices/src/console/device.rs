use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use vring::QueueState;
use zerocopy::IntoBytes;

use super::control::{Announce, Listen};
use super::input::Input;
use super::output::Output;
use super::port::{Notices, Port, PortState, SharedPort};
use super::spec::{CONTROL_RECEIVE, CONTROL_TRANSMIT, Config, Features};
use crate::config::read_config;
use crate::device::{
    DeviceError, DeviceEvents, DeviceState, DeviceStateError, DeviceType, QueueResources,
    VirtioDevice,
};
use crate::dma::DmaView;
use crate::serve::ServedQueues;
use crate::worker::Worker;

/// Descriptors of each queue.
const QUEUE_SIZE: u16 = 64;

/// Ports a device has at most.
pub const MAX_PORTS: usize = 64;

/// Bytes of a port's name at most, so that a message with it fits into any buffer a driver is likely to offer.
pub const MAX_NAME: usize = 120;

/// A console device (§5.3): ports that carry characters between driver and host.
///
/// A device whose only port is a console works without VIRTIO_CONSOLE_F_MULTIPORT; any other offers it.
pub struct Console {
    shared: Arc<Shared>,
    worker: Worker,
    features: Features,
    queue_max_sizes: Vec<u16>,
}

/// Why a console device could not be made or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsoleError {
    /// It takes 1 to [`MAX_PORTS`].
    #[error("a console device has 1 to {MAX_PORTS} ports, not {0}")]
    Ports(usize),
    /// A name is longer than [`MAX_NAME`] bytes.
    #[error("the name of port {0:?} is longer than {MAX_NAME} bytes")]
    Name(String),
    /// A saved state of another number of ports.
    #[error("saved state of {saved} ports for a device of {ports}")]
    SavedPorts {
        /// Ports in the state.
        saved: usize,
        /// Ports of the device.
        ports: usize,
    },
    /// A saved port that no driver can bring about.
    #[error("saved state of port {0} is impossible")]
    SavedPort(usize),
}

/// What driver and device have agreed on beyond the queues.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleState {
    /// Each port's state.
    pub ports: Vec<PortState>,
}

/// What the queues of a device share.
pub(super) struct Shared {
    pub(super) ports: Vec<SharedPort>,
    pub(super) queues: ServedQueues,
    /// Columns and rows; zero is not known.
    size: Mutex<(u16, u16)>,
}

impl Shared {
    pub(super) fn size(&self) -> (u16, u16) {
        *self.size.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Console {
    /// A device with these ports, the first of which is port 0, all served by one worker.
    ///
    /// # Errors
    /// No port, too many, or a name that is too long.
    pub fn new(ports: Vec<Port>, worker: Worker) -> Result<Self, ConsoleError> {
        let count = ports.len();
        if !(1..=MAX_PORTS).contains(&count) {
            return Err(ConsoleError::Ports(count));
        }
        if let Some(port) = ports.iter().find(|port| port.name.len() > MAX_NAME) {
            return Err(ConsoleError::Name(port.name.clone()));
        }
        let multiport = !matches!(&*ports, [Port { console: true, .. }]);
        let mut features = Features::SIZE | Features::EMERG_WRITE;
        features.set(Features::MULTIPORT, multiport);
        let queues = if multiport { 2 + 2 * count } else { 2 };
        let shared = Shared {
            ports: ports.into_iter().map(SharedPort::new).collect(),
            queues: ServedQueues::new(queues),
            size: Mutex::new((0, 0)),
        };
        Ok(Self {
            shared: Arc::new(shared),
            worker,
            features,
            queue_max_sizes: vec![QUEUE_SIZE; queues],
        })
    }

    /// Tells the driver the size of the terminal.
    pub fn resize(&self, cols: u16, rows: u16) {
        *self
            .shared
            .size
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = (cols, rows);
        for port in self.shared.ports.iter().filter(|port| port.console) {
            let state = &mut port.link().state;
            if state.ready {
                state.notices |= Notices::RESIZE;
            }
        }
        self.shared.queues.nudge(CONTROL_RECEIVE);
        if let Some(events) = self.shared.queues.events() {
            events.config_changed();
        }
    }

    /// What driver and device have agreed on. To be taken while no queue runs.
    pub fn save(&self) -> ConsoleState {
        ConsoleState {
            ports: self
                .shared
                .ports
                .iter()
                .map(|port| port.link().state.clone())
                .collect(),
        }
    }

    /// Takes over a saved state, before a queue is started.
    ///
    /// # Errors
    /// A state that no driver of this device can bring about. The device is as it was then.
    pub fn restore(&self, state: ConsoleState) -> Result<(), ConsoleError> {
        let ConsoleState { ports: saved } = state;
        let ports = &self.shared.ports;
        if saved.len() != ports.len() {
            return Err(ConsoleError::SavedPorts {
                saved: saved.len(),
                ports: ports.len(),
            });
        }
        let possible = |state: &PortState| {
            let early = Notices::ADD;
            (state.added || state.notices.is_empty() && !state.ready)
                && (state.ready || early.contains(state.notices))
                && Notices::all().contains(state.notices)
        };
        if let Some(port) = saved.iter().position(|state| !possible(state)) {
            return Err(ConsoleError::SavedPort(port));
        }
        for (port, state) in ports.iter().zip(saved) {
            let mut link = port.link();
            link.state = state;
            // The host's ends are others now.
            if link.state.ready {
                link.state.notices |= Notices::OPEN;
            }
        }
        Ok(())
    }

    /// Writes a character to port 0 without a queue (§5.3.5).
    fn emergency_write(&self, byte: u8) {
        if let Some(port) = self.shared.ports.first()
            && let Some(output) = port
                .output
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .as_mut()
        {
            // A full or closed output loses the character: there is nowhere to keep it.
            let _ = output.write_all(&[byte]);
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // A running queue holds what the queues share, and that holds the queue.
        for index in (0..).take(self.queue_max_sizes.len()) {
            self.shared.queues.stop(index);
        }
    }
}

impl<M: DmaView> VirtioDevice<M> for Console {
    fn device_state(&self) -> DeviceState {
        DeviceState::Console(self.save())
    }

    fn restore_device_state(&self, state: DeviceState) -> Result<(), DeviceStateError> {
        match state {
            DeviceState::Console(state) => Ok(self.restore(state)?),
            _ => Err(DeviceStateError::Kind),
        }
    }

    fn device_type(&self) -> DeviceType {
        DeviceType::CONSOLE
    }

    fn features(&self) -> u64 {
        self.features.bits()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_max_sizes
    }

    fn connect(&self, events: Arc<dyn DeviceEvents>) {
        self.shared.queues.connect(events);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let (cols, rows) = self.shared.size();
        let config = Config {
            cols: cols.into(),
            rows: rows.into(),
            max_nr_ports: u32::try_from(self.shared.ports.len())
                .unwrap_or(u32::MAX)
                .into(),
            emerg_wr: 0.into(),
        };
        read_config(config.as_bytes(), offset, data);
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let emergency = std::mem::offset_of!(Config, emerg_wr) as u64;
        let byte = emergency
            .checked_sub(offset)
            .and_then(|at| data.get(usize::try_from(at).ok()?));
        if let Some(byte) = byte {
            self.emergency_write(*byte);
        }
    }

    fn start_queue(
        &self,
        index: u16,
        resources: QueueResources<M>,
        state: Option<QueueState>,
    ) -> Result<(), DeviceError> {
        let multiport =
            Features::from_bits_truncate(resources.features).contains(Features::MULTIPORT);
        let shared = Arc::clone(&self.shared);
        let queues = &self.shared.queues;
        let worker = &self.worker;
        if index > 1 && !multiport {
            return Err(DeviceError::NoQueue(index));
        }
        // The control queues lie between those of port 0 and those of port 1.
        let port = usize::from(if index < CONTROL_RECEIVE {
            0
        } else {
            index / 2 - 1
        });
        match index {
            CONTROL_RECEIVE => queues.start(index, worker, Announce { shared }, resources, state),
            CONTROL_TRANSMIT => queues.start(index, worker, Listen { shared }, resources, state),
            _ if port >= self.shared.ports.len() => Err(DeviceError::NoQueue(index)),
            _ if index.is_multiple_of(2) => queues.start(
                index,
                worker,
                Input::new(shared, port, multiport),
                resources,
                state,
            ),
            _ => queues.start(index, worker, Output::new(shared, port), resources, state),
        }
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.shared.queues.stop(index)
    }

    fn reset(&self) {
        for port in &self.shared.ports {
            port.link().state = PortState::default();
        }
    }
}
