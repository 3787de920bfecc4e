use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pio_mmio_bus::bus::{AccessError, BusDevice};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;

use super::super::mmio::{set_high, set_low};
use super::super::spec::Isr;
use super::super::spec::pci::common;
use super::super::status::{QueueSetupState, Signals, StatusMachine};
use super::interrupt::PciInterrupts;

/// Where the structures lie in the BAR. Each has pages of its own.
pub(super) mod layout {
    /// Common configuration.
    pub const COMMON: u64 = 0;
    /// ISR status.
    pub const ISR: u64 = 0x1000;
    /// Device-specific configuration.
    pub const DEVICE: u64 = 0x2000;
    /// Doorbells, to the end of the BAR.
    pub const NOTIFY: u64 = 0x3000;
    /// Bytes from one queue's doorbell to the next.
    pub const NOTIFY_MULTIPLIER: u32 = 4;
}

/// The BAR with the virtio structures.
pub(super) struct BarRegisters<M> {
    machine: Mutex<StatusMachine<M>>,
    // What the hot accesses need, without the machine's lock.
    signals: Arc<Signals>,
    interrupts: Arc<PciInterrupts>,
    kicks: Arc<[Arc<EventFd>]>,
}

impl<M: GuestAddressSpace> BarRegisters<M> {
    pub(super) fn new(machine: StatusMachine<M>, interrupts: Arc<PciInterrupts>) -> Self {
        Self {
            signals: Arc::clone(machine.signals()),
            kicks: Arc::clone(machine.kicks()),
            machine: Mutex::new(machine),
            interrupts,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, StatusMachine<M>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn kicks(&self) -> &[Arc<EventFd>] {
        &self.kicks
    }

    /// Device reset, as the driver's or the bus's.
    pub(super) fn reset(&self) {
        let mut machine = self.lock();
        machine.reset();
        self.interrupts.reset();
    }

    fn read_common(&self, offset: u64, width: usize) -> Result<u64, AccessError> {
        let machine = self.lock();
        let queue = machine.queue();
        let of_queue = |f: fn(&QueueSetupState) -> u64| -> u64 { queue.map(f).unwrap_or_default() };
        let value = match (offset, width) {
            (common::DEVICE_FEATURE_SELECT, 4) => machine.device_feature_select().into(),
            (common::DEVICE_FEATURE, 4) => machine.device_features().into(),
            (common::DRIVER_FEATURE_SELECT, 4) => machine.driver_feature_select().into(),
            (common::DRIVER_FEATURE, 4) => machine.driver_features().into(),
            (common::CONFIG_MSIX_VECTOR, 2) => self.interrupts.config_vector().into(),
            (common::NUM_QUEUES, 2) => self.kicks.len() as u64,
            (common::DEVICE_STATUS, 1) => self.signals.status().bits().into(),
            (common::CONFIG_GENERATION, 1) => u64::from(self.signals.generation()) & 0xff,
            (common::QUEUE_SELECT, 2) => machine.queue_select().into(),
            (common::QUEUE_SIZE, 2) => of_queue(|queue| queue.size.into()),
            (common::QUEUE_MSIX_VECTOR, 2) => {
                self.interrupts.queue_vector(machine.queue_select()).into()
            }
            (common::QUEUE_ENABLE, 2) => of_queue(|queue| queue.enabled.into()),
            (common::QUEUE_NOTIFY_OFF, 2) => queue.map_or(0, |_| machine.queue_select().into()),
            (common::QUEUE_DESC, 4 | 8) => of_queue(|queue| queue.desc),
            (0x24, 4) => of_queue(|queue| queue.desc >> 32),
            (common::QUEUE_DRIVER, 4 | 8) => of_queue(|queue| queue.driver),
            (0x2c, 4) => of_queue(|queue| queue.driver >> 32),
            (common::QUEUE_DEVICE, 4 | 8) => of_queue(|queue| queue.device),
            (0x34, 4) => of_queue(|queue| queue.device >> 32),
            // A reset is complete when the write returns; there is no notification data of our own.
            (common::QUEUE_NOTIF_CONFIG_DATA | common::QUEUE_RESET, 2) => 0,
            (common::LENGTH.., _) => return Err(AccessError::NoRegister { offset }),
            _ => return Err(AccessError::Width { offset, width }),
        };
        Ok(value)
    }

    fn write_common(&self, offset: u64, width: usize, value: u64) -> Result<(), AccessError> {
        let [b0, b1, b2, b3, ..] = value.to_le_bytes();
        let half = u16::from_le_bytes([b0, b1]);
        let word = u32::from_le_bytes([b0, b1, b2, b3]);
        let mut machine = self.lock();
        match (offset, width) {
            (common::DEVICE_FEATURE_SELECT, 4) => machine.set_device_feature_select(word),
            (common::DRIVER_FEATURE_SELECT, 4) => machine.set_driver_feature_select(word),
            (common::DRIVER_FEATURE, 4) => machine.set_driver_features(word),
            (common::CONFIG_MSIX_VECTOR, 2) => self.interrupts.set_config_vector(half),
            (common::DEVICE_STATUS, 1) => {
                machine.write_status(b0);
                if self.signals.status().is_empty() {
                    self.interrupts.reset();
                }
            }
            (common::QUEUE_SELECT, 2) => machine.select_queue(half.into()),
            (common::QUEUE_SIZE, 2) => machine.set_queue_size(half.into()),
            (common::QUEUE_MSIX_VECTOR, 2) => {
                self.interrupts
                    .set_queue_vector(machine.queue_select(), half);
            }
            (common::QUEUE_ENABLE, 2) if half == 1 => machine.enable_queue(),
            (common::QUEUE_RESET, 2) if half == 1 => machine.reset_queue(),
            // The driver must not write other values (§4.1.4.3.2).
            (common::QUEUE_ENABLE | common::QUEUE_RESET, 2) => {}
            (common::QUEUE_DESC, 8) => machine.set_up_queue(|queue| queue.desc = value),
            (common::QUEUE_DRIVER, 8) => machine.set_up_queue(|queue| queue.driver = value),
            (common::QUEUE_DEVICE, 8) => machine.set_up_queue(|queue| queue.device = value),
            (common::QUEUE_DESC, 4) => machine.set_up_queue(|q| set_low(&mut q.desc, word)),
            (0x24, 4) => machine.set_up_queue(|q| set_high(&mut q.desc, word)),
            (common::QUEUE_DRIVER, 4) => machine.set_up_queue(|q| set_low(&mut q.driver, word)),
            (0x2c, 4) => machine.set_up_queue(|q| set_high(&mut q.driver, word)),
            (common::QUEUE_DEVICE, 4) => machine.set_up_queue(|q| set_low(&mut q.device, word)),
            (0x34, 4) => machine.set_up_queue(|q| set_high(&mut q.device, word)),
            (common::LENGTH.., _) => return Err(AccessError::NoRegister { offset }),
            _ => return Err(AccessError::Width { offset, width }),
        }
        Ok(())
    }
}

impl<M: GuestAddressSpace + Send + Sync> BusDevice for BarRegisters<M> {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let value = match offset {
            layout::NOTIFY.. => return Err(AccessError::NoRegister { offset }),
            layout::DEVICE.. => {
                let device = Arc::clone(self.lock().device());
                device.read_config(offset - layout::DEVICE, data);
                return Ok(());
            }
            // Reading acknowledges (§4.1.4.5).
            layout::ISR.. if offset == layout::ISR => {
                self.interrupts.isr.clear(Isr::all()).bits().into()
            }
            layout::ISR.. => return Err(AccessError::NoRegister { offset }),
            _ => self.read_common(offset, data.len())?,
        };
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match offset {
            layout::NOTIFY.. => {
                let step = u64::from(layout::NOTIFY_MULTIPLIER);
                let index = usize::try_from((offset - layout::NOTIFY) / step).ok();
                let kick = index
                    .filter(|_| offset.is_multiple_of(step))
                    .and_then(|index| self.kicks.get(index))
                    .ok_or(AccessError::NoRegister { offset })?;
                // Fails only if the counter is full, and then the device knows already.
                let _ = kick.write(1);
                Ok(())
            }
            layout::DEVICE.. => {
                let device = Arc::clone(self.lock().device());
                device.write_config(offset - layout::DEVICE, data);
                Ok(())
            }
            layout::ISR.. => Err(AccessError::NoRegister { offset }),
            _ => {
                let width = data.len();
                let mut value = [0; 8];
                value
                    .get_mut(..width)
                    .ok_or(AccessError::Width { offset, width })?
                    .copy_from_slice(data);
                self.write_common(offset, width, u64::from_le_bytes(value))
            }
        }
    }
}
