//! A device that only records what its transport does with it, and a line that records its level.
#![allow(dead_code, reason = "each test uses its part")]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

pub mod driver;
pub mod pci;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use pio_mmio_bus::interrupt::IrqLine;
use virtio_devices::{DeviceError, DeviceEvents, DeviceType, QueueResources, VirtioDevice};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vring::QueueState;

pub type Memory = Arc<GuestMemoryMmap>;

pub fn memory() -> Memory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap())
}

/// A level-triggered input.
#[derive(Default)]
pub struct Line(AtomicBool);

impl Line {
    pub fn level(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

impl IrqLine for Line {
    fn set_level(&self, asserted: bool) {
        self.0.store(asserted, Ordering::SeqCst);
    }
}

/// Three queues, two feature bits of which the second needs the first, 23 bytes of configuration space.
pub struct Recorder {
    events: OnceLock<Arc<dyn DeviceEvents>>,
    pub running: Mutex<BTreeMap<u16, QueueResources<Memory>>>,
    pub config: Mutex<[u8; Recorder::CONFIG]>,
}

impl Recorder {
    pub const SIZES: [u16; 3] = [256, 8, 1];
    pub const FEATURES: u64 = 0b11;
    pub const CONFIG: usize = 23;

    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            events: OnceLock::new(),
            running: Mutex::default(),
            config: Mutex::new(Self::initial_config()),
        })
    }

    pub fn initial_config() -> [u8; Self::CONFIG] {
        std::array::from_fn(|byte| u8::try_from(byte).unwrap() + 1)
    }

    pub fn events(&self) -> &dyn DeviceEvents {
        &**self.events.get().unwrap()
    }
}

impl VirtioDevice<Memory> for Recorder {
    fn device_type(&self) -> DeviceType {
        DeviceType(42)
    }

    fn features(&self) -> u64 {
        Self::FEATURES
    }

    fn accepts(&self, features: u64) -> bool {
        features & 0b11 != 0b10
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &Self::SIZES
    }

    fn connect(&self, events: Arc<dyn DeviceEvents>) {
        assert!(self.events.set(events).is_ok());
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config.lock().unwrap();
        for (byte, at) in data.iter_mut().zip(offset..) {
            *byte = usize::try_from(at)
                .ok()
                .and_then(|at| config.get(at).copied())
                .unwrap_or(0);
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        let mut config = self.config.lock().unwrap();
        for (byte, at) in data.iter().zip(offset..) {
            if let Some(slot) = usize::try_from(at).ok().and_then(|at| config.get_mut(at)) {
                *slot = *byte;
            }
        }
    }

    fn start_queue(
        &self,
        index: u16,
        resources: QueueResources<Memory>,
        _state: Option<QueueState>,
    ) -> Result<(), DeviceError> {
        // An address that this device calls unusable.
        if resources.config.desc == GuestAddress(u64::MAX) {
            return Err(DeviceError::NoQueue(index));
        }
        let before = self.running.lock().unwrap().insert(index, resources);
        assert!(before.is_none(), "queue {index} was started twice");
        Ok(())
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.running.lock().unwrap().remove(&index);
        None
    }

    fn reset(&self) {
        assert!(self.running.lock().unwrap().is_empty());
        *self.config.lock().unwrap() = Self::initial_config();
    }
}
