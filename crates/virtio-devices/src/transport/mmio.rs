use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pio_mmio_bus::bus::{AccessError, Bus, BusDevice, BusError, Doorbell, RegionId};
use pio_mmio_bus::interrupt::IrqLine;
use serde::{Deserialize, Serialize};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::EventFd;
use vring::Features;

use super::isr::IsrLine;
use super::spec::{Isr, mmio};
use super::status::{Interrupts, RestoreError, Signals, StatusMachine, TransportState};
use crate::device::VirtioDevice;

/// The vendor ID that the device reports: "VRNG".
const VENDOR: u32 = u32::from_le_bytes(*b"VRNG");

/// The MMIO transport, version 2 (virtio 1.3 §4.2): 256 bytes of 32-bit registers, then the configuration space.
///
/// [`place`](Self::place) puts it on a bus.
pub struct MmioTransport<M> {
    machine: Mutex<StatusMachine<M>>,
    // What the hot accesses need, without the machine's lock.
    signals: Arc<Signals>,
    interrupt: Arc<LineInterrupt>,
    kicks: Arc<[Arc<EventFd>]>,
}

/// What of an MMIO transport outlives a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioState {
    /// What the driver has set up.
    pub transport: TransportState,
    /// InterruptStatus.
    pub interrupt_status: u8,
}

impl<M: GuestAddressSpace> MmioTransport<M> {
    /// Size of the region to reserve, in bytes: a page.
    pub const SIZE: u64 = 0x1000;

    /// Puts `device`, which sees guest memory as `memory`, behind registers that raise `line`. The line is level-triggered.
    ///
    /// # Errors
    /// No event descriptors are left.
    pub fn new(
        device: Arc<dyn VirtioDevice<M>>,
        memory: M,
        line: Arc<dyn IrqLine>,
    ) -> io::Result<Self> {
        let interrupt = Arc::new(LineInterrupt(IsrLine::new(line)));
        let machine = StatusMachine::new(
            device,
            memory,
            Features::empty(),
            Arc::clone(&interrupt) as Arc<dyn Interrupts>,
        )?;
        Ok(Self {
            signals: Arc::clone(machine.signals()),
            kicks: Arc::clone(machine.kicks()),
            machine: Mutex::new(machine),
            interrupt,
        })
    }

    /// Puts the transport on `bus` at `base`, with a doorbell for each queue: a 32-bit write of the queue's index at
    /// [`mmio::QUEUE_NOTIFY`]. `name` is what errors and reports call the region.
    ///
    /// # Errors
    /// The addresses are taken, or do not exist.
    pub fn place(self: &Arc<Self>, bus: &Bus, base: u64, name: &str) -> Result<RegionId, BusError>
    where
        M: Send + Sync + 'static,
    {
        let region = bus.insert(base, Self::SIZE, name, Arc::clone(self) as _)?;
        for (kick, index) in self.kicks.iter().zip(0..) {
            let doorbell = Doorbell {
                width: Some(4),
                datamatch: Some(index),
                needs_value: false,
                eventfd: Arc::clone(kick),
            };
            bus.add_doorbell(region, mmio::QUEUE_NOTIFY, doorbell)?;
        }
        Ok(region)
    }

    /// The kick of each queue.
    pub fn kicks(&self) -> &[Arc<EventFd>] {
        &self.kicks
    }

    /// Stops all queues where they are, so that memory can be saved. Idempotent.
    pub fn pause(&self) {
        self.lock().pause();
    }

    /// Carries on after [`pause`](Self::pause), [`save`](Self::save) or [`restore`](Self::restore). A ring that cannot be used any more
    /// shows as DEVICE_NEEDS_RESET.
    pub fn resume(&self) {
        self.lock().resume();
    }

    /// Pauses and saves.
    pub fn save(&self) -> MmioState {
        MmioState {
            transport: self.lock().save(),
            interrupt_status: self.interrupt.0.pending().bits(),
        }
    }

    /// Takes over a saved state and stays paused.
    ///
    /// # Errors
    /// The state does not fit the device, or no driver can have brought it about. The transport is as before then; if it is the device
    /// that refuses its own part, the transport is reset.
    pub fn restore(&self, state: MmioState) -> Result<(), RestoreError> {
        let MmioState {
            transport,
            interrupt_status,
        } = state;
        let pending =
            Isr::from_bits(interrupt_status).ok_or(RestoreError::Isr(interrupt_status))?;
        self.lock().restore(transport)?;
        self.interrupt.0.clear(Isr::all());
        if !pending.is_empty() {
            self.interrupt.0.raise(pending);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, StatusMachine<M>> {
        self.machine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, offset: u64) -> Result<u32, AccessError> {
        Ok(match offset {
            mmio::MAGIC_VALUE => mmio::MAGIC,
            mmio::VERSION => mmio::LAYOUT,
            mmio::DEVICE_ID => u32::from(self.lock().device().device_type().0),
            mmio::VENDOR_ID => VENDOR,
            mmio::DEVICE_FEATURES => self.lock().device_features(),
            mmio::QUEUE_SIZE_MAX => u32::from(self.lock().queue_max_size()),
            mmio::QUEUE_READY => self
                .lock()
                .queue()
                .map_or(0, |queue| u32::from(queue.enabled)),
            mmio::INTERRUPT_STATUS => u32::from(self.interrupt.0.pending().bits()),
            mmio::STATUS => u32::from(self.signals.status().bits()),
            // No shared memory regions: all ones (§4.2.2).
            mmio::SHM_LEN_LOW..=mmio::SHM_BASE_HIGH if offset.is_multiple_of(4) => u32::MAX,
            // A reset is complete when the write returns.
            mmio::QUEUE_RESET => 0,
            mmio::CONFIG_GENERATION => self.signals.generation(),
            _ => return Err(AccessError::NoRegister { offset }),
        })
    }

    fn write_register(&self, offset: u64, value: u32) -> Result<(), AccessError> {
        match offset {
            mmio::QUEUE_NOTIFY => {
                if let Some(kick) = usize::try_from(value)
                    .ok()
                    .and_then(|index| self.kicks.get(index))
                {
                    // Fails only if the counter is full, and then the device knows already.
                    let _ = kick.write(1);
                }
            }
            mmio::INTERRUPT_ACK => {
                let [causes, ..] = value.to_le_bytes();
                self.interrupt.0.clear(Isr::from_bits_truncate(causes));
            }
            mmio::STATUS => {
                let [status, ..] = value.to_le_bytes();
                let mut machine = self.lock();
                machine.write_status(status);
                if self.signals.status().is_empty() {
                    self.interrupt.0.clear(Isr::all());
                }
            }
            mmio::DEVICE_FEATURES_SEL => self.lock().set_device_feature_select(value),
            mmio::DRIVER_FEATURES => self.lock().set_driver_features(value),
            mmio::DRIVER_FEATURES_SEL => self.lock().set_driver_feature_select(value),
            mmio::QUEUE_SEL => self.lock().select_queue(value),
            mmio::QUEUE_SIZE => self.lock().set_queue_size(value),
            mmio::QUEUE_READY if value == 1 => self.lock().enable_queue(),
            mmio::QUEUE_READY if value == 0 => self.lock().disable_queue(),
            mmio::QUEUE_READY => {}
            mmio::QUEUE_DESC_LOW => self
                .lock()
                .set_up_queue(|queue| set_low(&mut queue.desc, value)),
            mmio::QUEUE_DESC_HIGH => {
                self.lock()
                    .set_up_queue(|queue| set_high(&mut queue.desc, value));
            }
            mmio::QUEUE_DRIVER_LOW => {
                self.lock()
                    .set_up_queue(|queue| set_low(&mut queue.driver, value));
            }
            mmio::QUEUE_DRIVER_HIGH => {
                self.lock()
                    .set_up_queue(|queue| set_high(&mut queue.driver, value));
            }
            mmio::QUEUE_DEVICE_LOW => {
                self.lock()
                    .set_up_queue(|queue| set_low(&mut queue.device, value));
            }
            mmio::QUEUE_DEVICE_HIGH => {
                self.lock()
                    .set_up_queue(|queue| set_high(&mut queue.device, value));
            }
            mmio::SHM_SEL => {}
            mmio::QUEUE_RESET if value == 1 => self.lock().reset_queue(),
            mmio::QUEUE_RESET => {}
            _ => return Err(AccessError::NoRegister { offset }),
        }
        Ok(())
    }
}

impl<M: GuestAddressSpace + Send + Sync> BusDevice for MmioTransport<M> {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        if let Some(offset) = offset.checked_sub(mmio::CONFIG) {
            let device = Arc::clone(self.lock().device());
            device.read_config(offset, data);
            return Ok(());
        }
        let width = data.len();
        let data: &mut [u8; 4] = data
            .try_into()
            .map_err(|_| AccessError::Width { offset, width })?;
        *data = self.read_register(offset)?.to_le_bytes();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        if let Some(offset) = offset.checked_sub(mmio::CONFIG) {
            let device = Arc::clone(self.lock().device());
            device.write_config(offset, data);
            return Ok(());
        }
        let width = data.len();
        let data: [u8; 4] = data
            .try_into()
            .map_err(|_| AccessError::Width { offset, width })?;
        self.write_register(offset, u32::from_le_bytes(data))
    }
}

/// Both kinds of interrupt share the line.
struct LineInterrupt(IsrLine);

impl Interrupts for LineInterrupt {
    fn used(&self, _queue: u16) {
        self.0.raise(Isr::USED);
    }

    fn config(&self) {
        self.0.raise(Isr::CONFIG);
    }
}

/// Sets the lower half of a 64-bit register.
pub(super) fn set_low(value: &mut u64, low: u32) {
    *value = *value & !0xffff_ffff | u64::from(low);
}

/// Sets the upper half of a 64-bit register.
pub(super) fn set_high(value: &mut u64, high: u32) {
    *value = u64::from(high) << 32 | *value & 0xffff_ffff;
}
