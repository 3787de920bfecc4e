//! A PCI device for learning, after QEMU's `edu` (its documentation: docs/specs/edu): a factorial, a DMA engine with a buffer of its
//! own, and interrupts that the driver raises itself. The page "Your first device" of the book builds it step by step.

// ANCHOR: registers
/// Where the registers are in BAR 0, and what they hold.
pub mod spec {
    /// Vendor ID.
    pub const VENDOR: u16 = 0x1234;
    /// Device ID.
    pub const DEVICE: u16 = 0x11e8;
    /// Size of BAR 0 in bytes.
    pub const BAR_SIZE: u64 = 1 << 20;
    /// What [`ID`] reads as: version 1.0 and a signature.
    pub const IDENTIFICATION: u32 = 0x0100_00ed;

    /// Identification, read-only.
    pub const ID: u64 = 0x00;
    /// Liveness: reads as the complement of what was written.
    pub const LIVENESS: u64 = 0x04;
    /// Factorial: the result takes the place of the number.
    pub const FACTORIAL: u64 = 0x08;
    /// Status.
    pub const STATUS: u64 = 0x20;
    /// Interrupt status, read-only: why the interrupt is raised.
    pub const INTERRUPT_STATUS: u64 = 0x24;
    /// Adds the written bits to the interrupt status.
    pub const INTERRUPT_RAISE: u64 = 0x60;
    /// Removes the written bits from the interrupt status.
    pub const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
    /// Where a transfer comes from.
    pub const DMA_SOURCE: u64 = 0x80;
    /// Where a transfer goes.
    pub const DMA_DESTINATION: u64 = 0x88;
    /// Bytes of a transfer.
    pub const DMA_COUNT: u64 = 0x90;
    /// Command of a transfer.
    pub const DMA_COMMAND: u64 = 0x98;

    /// In [`STATUS`]: raise [`FACTORIAL_DONE`] after a factorial. The only bit that is kept.
    pub const FACTORIAL_INTERRUPT: u32 = 0x80;
    /// In [`INTERRUPT_STATUS`]: a factorial is done.
    pub const FACTORIAL_DONE: u32 = 0x1;
    /// In [`INTERRUPT_STATUS`]: a transfer is done.
    pub const DMA_DONE: u32 = 0x100;

    /// In [`DMA_COMMAND`]: start. Reads as 0 when the transfer is over.
    pub const DMA_RUN: u64 = 0x1;
    /// In [`DMA_COMMAND`]: from the buffer to memory, else from memory to the buffer.
    pub const DMA_TO_MEMORY: u64 = 0x2;
    /// In [`DMA_COMMAND`]: raise [`DMA_DONE`] afterwards.
    pub const DMA_INTERRUPT: u64 = 0x4;

    /// Where the device has its buffer, as a transfer's registers name it.
    pub const BUFFER: u64 = 0x4_0000;
    /// Size of the buffer in bytes.
    pub const BUFFER_SIZE: usize = 4096;
    /// Addresses that the DMA engine can send, by default: 28 bits.
    pub const DMA_MASK: u64 = (1 << 28) - 1;
}
// ANCHOR_END: registers

// ANCHOR: state
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pio_mmio_bus::bus::{AccessError, BusDevice};
use pio_mmio_bus::interrupt::{IrqLine, MsiRouter};
use pio_mmio_bus::pci::{
    Bar, BarKind, CapabilityHandler, ConfigBuilder, ConfigError, ConfigSpace, Decoder, Identity,
    IntxPin, Msi, RequesterId, VectorsError,
};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

/// The device behind BAR 0, which sees memory as `A`.
pub struct Edu<A> {
    state: Mutex<State>,
    memory: A,
    dma_mask: u64,
    interrupt: Interrupt,
    bus_master: Arc<AtomicBool>,
}

/// What the registers hold.
#[derive(Default)]
struct State {
    liveness: u32,
    factorial: u32,
    status: u32,
    interrupts: u32,
    source: u64,
    destination: u64,
    count: u64,
    command: u64,
    buffer: Buffer,
}

struct Buffer(Box<[u8; spec::BUFFER_SIZE]>);

impl Default for Buffer {
    fn default() -> Self {
        Self(Box::new([0; spec::BUFFER_SIZE]))
    }
}
// ANCHOR_END: state

// ANCHOR: access
impl<A: GuestAddressSpace + Send + Sync> BusDevice for Edu<A> {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        check_width(offset, data.len())?;
        let state = self.lock();
        let value = match offset {
            spec::ID => spec::IDENTIFICATION.into(),
            spec::LIVENESS => state.liveness.into(),
            spec::FACTORIAL => state.factorial.into(),
            spec::STATUS => state.status.into(),
            spec::INTERRUPT_STATUS => state.interrupts.into(),
            spec::DMA_SOURCE => state.source,
            spec::DMA_DESTINATION => state.destination,
            spec::DMA_COUNT => state.count,
            spec::DMA_COMMAND => state.command,
            _ => return Err(AccessError::NoRegister { offset }),
        };
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        check_width(offset, data.len())?;
        let mut bytes = [0; 8];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u64::from_le_bytes(bytes);
        let [a, b, c, d, ..] = bytes;
        let low = u32::from_le_bytes([a, b, c, d]);
        let mut state = self.lock();
        match offset {
            spec::LIVENESS => state.liveness = !low,
            spec::FACTORIAL => {
                state.factorial = factorial(low);
                if state.status & spec::FACTORIAL_INTERRUPT != 0 {
                    self.raise(&mut state, spec::FACTORIAL_DONE);
                }
            }
            spec::STATUS => state.status = low & spec::FACTORIAL_INTERRUPT,
            spec::INTERRUPT_RAISE => self.raise(&mut state, low),
            spec::INTERRUPT_ACKNOWLEDGE => self.acknowledge(&mut state, low),
            spec::DMA_SOURCE => state.source = value,
            spec::DMA_DESTINATION => state.destination = value,
            spec::DMA_COUNT => state.count = value,
            spec::DMA_COMMAND if value & spec::DMA_RUN != 0 => {
                state.command = value & !spec::DMA_RUN;
                self.transfer(&mut state);
            }
            spec::DMA_COMMAND => {}
            _ => return Err(AccessError::NoRegister { offset }),
        }
        Ok(())
    }
}

/// The DMA registers take 4 or 8 bytes, all others 4.
fn check_width(offset: u64, width: usize) -> Result<(), AccessError> {
    match width {
        4 => Ok(()),
        8 if offset >= spec::DMA_SOURCE => Ok(()),
        _ => Err(AccessError::Width { offset, width }),
    }
}

/// The factorial modulo 2^32. The guest picks the number, but the product is 0 from 34 on, and stays so.
fn factorial(number: u32) -> u32 {
    let factors = 1..=number.min(34);
    factors.fold(1, u32::wrapping_mul)
}
// ANCHOR_END: access

// ANCHOR: interrupt
/// The interrupt: a message if the driver enabled MSI, else the pin.
struct Interrupt {
    msi: Arc<Msi>,
    pin: Arc<IntxPin>,
}

impl<A> Edu<A> {
    fn raise(&self, state: &mut State, bits: u32) {
        state.interrupts |= bits;
        let Interrupt { msi, pin } = &self.interrupt;
        if state.interrupts == 0 {
            return;
        }
        if msi.granted() == 0 {
            pin.set_level(true);
        } else if let Some(route) = msi.route(0) {
            // A message that nobody takes is lost.
            let _ = route.trigger();
        }
    }

    fn acknowledge(&self, state: &mut State, bits: u32) {
        state.interrupts &= !bits;
        if state.interrupts == 0 {
            self.interrupt.pin.set_level(false);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
// ANCHOR_END: interrupt

// ANCHOR: dma
impl<A: GuestAddressSpace> Edu<A> {
    /// Carries out a transfer at once. One that does not fit the buffer, or that memory refuses, moves nothing more.
    fn transfer(&self, state: &mut State) {
        let to_memory = state.command & spec::DMA_TO_MEMORY != 0;
        let (inside, outside) = if to_memory {
            (state.source, state.destination)
        } else {
            (state.destination, state.source)
        };
        let address = GuestAddress(outside & self.dma_mask);
        let part = buffer_range(inside, state.count)
            .and_then(|range| state.buffer.0.get_mut(range))
            .filter(|_| self.bus_master.load(Ordering::Acquire));
        if let Some(part) = part {
            // The guard lives as long as the transfer: an IOMMU waits for it before it says that a mapping is gone.
            let memory = self.memory.memory();
            // What is blocked, the IOMMU reports.
            let _ = if to_memory {
                memory.write_slice(part, address)
            } else {
                memory.read_slice(part, address)
            };
        }
        if state.command & spec::DMA_INTERRUPT != 0 {
            self.raise(state, spec::DMA_DONE);
        }
    }
}

/// The part of the buffer that `count` bytes from `address` on are.
fn buffer_range(address: u64, count: u64) -> Option<Range<usize>> {
    let start = usize::try_from(address.checked_sub(spec::BUFFER)?).ok()?;
    let end = start.checked_add(usize::try_from(count).ok()?)?;
    Some(start..end)
}
// ANCHOR_END: dma

// ANCHOR: function
/// Why the device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EduError {
    /// No route for its message.
    #[error("edu: {0}")]
    Msi(#[from] VectorsError),
    /// No configuration space.
    #[error("edu: {0}")]
    Config(#[from] ConfigError),
}

impl<A: GuestAddressSpace + Send + Sync + 'static> Edu<A> {
    /// The device as a PCI function, to be put on a bus. It sees memory as `memory`, raises a message through `router` or else
    /// `pin`, and sends addresses of the bits in `dma_mask` ([`spec::DMA_MASK`] is what drivers expect).
    ///
    /// # Errors
    ///
    /// No interrupt route is left, or no room on the bus.
    pub fn function(
        memory: A,
        router: &dyn MsiRouter,
        pin: Arc<IntxPin>,
        decoder: &Arc<Decoder>,
        dma_mask: u64,
    ) -> Result<Arc<ConfigSpace>, EduError> {
        let msi = Msi::new(1, router)?;
        let bus_master = Arc::new(AtomicBool::new(false));
        let master = Master {
            msi: Arc::clone(&msi),
            enabled: Arc::clone(&bus_master),
        };
        let capability = msi.capability().handler(Arc::new(master));
        let device = Arc::new(Self {
            state: Mutex::default(),
            memory,
            dma_mask,
            interrupt: Interrupt {
                msi,
                pin: Arc::clone(&pin),
            },
            bus_master,
        });
        let identity = Identity {
            vendor: spec::VENDOR,
            device: spec::DEVICE,
            revision: 0x10,
            class: [0x00, 0xff, 0x00],
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        };
        let bar = Bar {
            kind: BarKind::Memory32 {
                prefetchable: false,
            },
            size: spec::BAR_SIZE,
            name: "edu".to_owned(),
            device,
        };
        let config = ConfigBuilder::endpoint(identity)
            .bar(0, bar)
            .interrupt(pin)
            .capability(capability);
        Ok(config.build(decoder)?)
    }
}

/// Listens beside MSI to whether the function may reach memory.
struct Master {
    msi: Arc<Msi>,
    enabled: Arc<AtomicBool>,
}

impl CapabilityHandler for Master {
    fn refresh(&self, registers: &mut [u8], range: Range<usize>) {
        self.msi.refresh(registers, range);
    }

    fn constrain(&self, before: &[u8], after: &mut [u8]) {
        self.msi.constrain(before, after);
    }

    fn written(&self, registers: &[u8], range: Range<usize>) {
        self.msi.written(registers, range);
    }

    fn set_bus_master(&self, enabled: bool) {
        self.enabled.store(enabled, Ordering::Release);
        self.msi.set_bus_master(enabled);
    }

    fn set_requester(&self, requester: RequesterId) {
        self.msi.set_requester(requester);
    }

    fn reset(&self) {
        self.msi.reset();
    }
}
// ANCHOR_END: function
