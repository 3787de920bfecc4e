//! A user-space I/O APIC, for machines whose interrupt controller is split: the local APICs are the hypervisor's, and lines
//! become messages here.

pub mod spec;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::{Deserialize, Serialize};

use super::{EndObserver, InterruptError, IrqLine, MsiMessage, MsiRoute, MsiRouter};
use crate::bus::{AccessError, BusDevice};
use crate::pci::RequesterId;
use spec::{
    ARBITRATION, EOI, ID, ID_MASK, PINS, REDIRECTION, Redirection, SELECT, VERSION, VERSION_VALUE,
    WINDOW,
};

/// An I/O APIC with 24 pins: the 82093AA with the EOI register of its successors.
///
/// Each pin has a live route, which follows its redirection entry, so that an interrupt remapper can re-resolve it and a
/// hypervisor knows the vectors whose end it must report.
pub struct Ioapic {
    state: Mutex<State>,
}

struct State {
    requester: RequesterId,
    select: u8,
    id: u32,
    pins: Vec<Pin>,
}

struct Pin {
    entry: Redirection,
    asserted: bool,
    route: Arc<dyn MsiRoute>,
    /// Where the route points, as far as it was accepted.
    connected: Option<MsiMessage>,
    observers: Vec<Weak<dyn EndObserver>>,
}

/// What the guest can see of an [`Ioapic`], and the levels of its lines.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoapicState {
    /// Register select.
    pub select: u8,
    /// Identification register.
    pub id: u32,
    /// The 24 pins.
    pub pins: Vec<IoapicPinState>,
}

/// A pin of an [`IoapicState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoapicPinState {
    /// Redirection table entry.
    pub entry: u64,
    /// Whether its line is asserted.
    pub asserted: bool,
}

/// Why a saved state was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum IoapicStateError {
    /// Another number of pins.
    #[error("state of {0} pins, must be {PINS}")]
    Pins(usize),
    /// Reserved bits are set, or remote IRR in an entry that is not level-triggered.
    #[error("pin {pin}: {entry:#018x} is no redirection entry")]
    Entry {
        /// Which pin.
        pin: usize,
        /// Its saved entry.
        entry: u64,
    },
    /// Reserved bits are set.
    #[error("{0:#010x} is no identification")]
    Id(u32),
}

impl Ioapic {
    /// Where a PC has it.
    pub const BASE: u64 = 0xfec0_0000;
    /// Size of its region in bytes.
    pub const SIZE: u64 = 0x1000;

    /// An I/O APIC after reset, all pins masked. Its messages carry `requester`, the identity that the firmware's DMA-remapping
    /// table gives it.
    pub fn new(
        requester: RequesterId,
        router: &dyn MsiRouter,
    ) -> Result<Arc<Self>, InterruptError> {
        let pins = (0..PINS)
            .map(|_| {
                Ok(Pin {
                    entry: Redirection::MASKED,
                    asserted: false,
                    route: router.allocate()?,
                    connected: None,
                    observers: Vec::new(),
                })
            })
            .collect::<Result<_, InterruptError>>()?;
        Ok(Arc::new(Self {
            state: Mutex::new(State {
                requester,
                select: 0,
                id: 0,
                pins,
            }),
        }))
    }

    /// The line into `pin`, 0 to 23. It has one driver: to share it, drive it through [`IntxLines`](crate::pci::IntxLines).
    pub fn line(self: &Arc<Self>, pin: usize) -> Option<Arc<dyn IrqLine>> {
        (pin < PINS).then(|| {
            Arc::new(Line {
                ioapic: Arc::clone(self),
                pin,
            }) as Arc<dyn IrqLine>
        })
    }

    /// Tells `observer`, as long as it lives, of each end of a level-triggered interrupt of `pin`, 0 to 23; of no other pin there is
    /// anything to tell. Those of a line that is shared are told of the ends of each other's interrupts.
    pub fn observe(&self, pin: usize, observer: Weak<dyn EndObserver>) {
        if let Some(pin) = self.lock().pins.get_mut(pin) {
            pin.observers
                .retain(|observer| observer.strong_count() != 0);
            pin.observers.push(observer);
        }
    }

    /// A local APIC ended the interrupt `vector`: level-triggered pins with that vector may send again, and do if their lines
    /// are still asserted when their observers were told.
    pub fn eoi(&self, vector: u8) {
        let ends =
            |pin: &Pin| pin.entry.vector() == vector && pin.entry.contains(Redirection::REMOTE_IRR);
        let observers: Vec<_> = (self.lock().pins.iter())
            .filter(|pin| ends(pin))
            .flat_map(Pin::observers)
            .collect();
        // Not under the lock: they drive their lines.
        for observer in observers {
            observer.ended();
        }
        for pin in self.lock().pins.iter_mut().filter(|pin| ends(pin)) {
            pin.entry.remove(Redirection::REMOTE_IRR);
            pin.send_level();
        }
    }

    /// Saves the registers and the levels of the lines.
    pub fn save(&self) -> IoapicState {
        let State {
            requester: _,
            select,
            id,
            pins,
        } = &*self.lock();
        let pins = pins
            .iter()
            .map(|pin| {
                let Pin {
                    entry,
                    asserted,
                    route: _,
                    connected: _,
                    observers: _,
                } = pin;
                IoapicPinState {
                    entry: entry.bits(),
                    asserted: *asserted,
                }
            })
            .collect();
        IoapicState {
            select: *select,
            id: *id,
            pins,
        }
    }

    /// Takes over saved registers and levels, and sends for level-triggered pins what is due. Refuses, and changes nothing, if
    /// the state is none that the guest could have made.
    pub fn restore(&self, saved: &IoapicState) -> Result<(), IoapicStateError> {
        let IoapicState { select, id, pins } = saved;
        if pins.len() != PINS {
            return Err(IoapicStateError::Pins(pins.len()));
        }
        if id & !ID_MASK != 0 {
            return Err(IoapicStateError::Id(*id));
        }
        let legal = |entry: u64| {
            Redirection::from_bits(entry).is_some_and(|entry| {
                !entry.contains(Redirection::SENDING)
                    && (entry.contains(Redirection::LEVEL)
                        || !entry.contains(Redirection::REMOTE_IRR))
            })
        };
        if let Some((pin, saved)) = pins.iter().enumerate().find(|(_, pin)| !legal(pin.entry)) {
            let entry = saved.entry;
            return Err(IoapicStateError::Entry { pin, entry });
        }
        let mut state = self.lock();
        state.select = *select;
        state.id = *id;
        let requester = state.requester;
        for (pin, saved) in state.pins.iter_mut().zip(pins) {
            let IoapicPinState { entry, asserted } = *saved;
            pin.entry = Redirection::from_bits_truncate(entry);
            pin.asserted = asserted;
            pin.connect(requester);
            pin.send_level();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn read_register(&self) -> u32 {
        match self.select {
            ID | ARBITRATION => self.id,
            VERSION => VERSION_VALUE,
            select => self
                .pins
                .get(usize::from(select.wrapping_sub(REDIRECTION) / 2))
                .map_or(0, |pin| {
                    let [a, b, c, d, upper @ ..] = pin.entry.bits().to_le_bytes();
                    u32::from_le_bytes(if select & 1 == 0 { [a, b, c, d] } else { upper })
                }),
        }
    }

    /// Returns who has to be told that an interrupt ended by it.
    fn write_register(&mut self, value: u32) -> Vec<Arc<dyn EndObserver>> {
        if self.select == ID {
            self.id = value & ID_MASK;
        }
        let Some(pin) = self
            .pins
            .get_mut(usize::from(self.select.wrapping_sub(REDIRECTION) / 2))
        else {
            return Vec::new();
        };
        let (kept, value) = if self.select & 1 == 0 {
            (!0xffff_ffff, u64::from(value))
        } else {
            (0xffff_ffff, u64::from(value) << 32)
        };
        let written = Redirection::from_bits_retain(pin.entry.bits() & kept | value);
        let read_only = pin.entry & Redirection::REMOTE_IRR;
        pin.entry = written & Redirection::WRITABLE | read_only;
        let mut ended = Vec::new();
        if !pin.entry.contains(Redirection::LEVEL) && !read_only.is_empty() {
            // Software without an EOI register ends an interrupt by making the pin edge-triggered for a moment.
            pin.entry.remove(Redirection::REMOTE_IRR);
            ended.extend(pin.observers());
        }
        pin.connect(self.requester);
        pin.send_level();
        ended
    }
}

impl Pin {
    fn observers(&self) -> impl Iterator<Item = Arc<dyn EndObserver>> {
        self.observers.iter().filter_map(Weak::upgrade)
    }

    /// Points the route where the entry says. That of a masked pin stays: an interrupt that it sent may not have ended yet.
    fn connect(&mut self, requester: RequesterId) {
        let message = self.entry.message(requester);
        if !self.entry.contains(Redirection::MASKED) && self.connected != Some(message) {
            self.connected = self.route.update(Some(message)).ok().map(|()| message);
        }
    }

    fn set_level(&mut self, asserted: bool) {
        let rises = asserted && !self.asserted;
        self.asserted = asserted;
        if self.entry.contains(Redirection::LEVEL) {
            self.send_level();
        } else if rises {
            self.send();
        }
    }

    /// Sends if the pin is level-triggered, asserted, and its last interrupt ended.
    fn send_level(&mut self) {
        if self.asserted
            && self.entry.contains(Redirection::LEVEL)
            && !self.entry.contains(Redirection::REMOTE_IRR)
            && self.send()
        {
            self.entry.insert(Redirection::REMOTE_IRR);
        }
    }

    /// Sends unless the pin is masked or what it would send was refused. An edge that comes then is lost (§3.2.4, bit 16).
    fn send(&self) -> bool {
        !self.entry.contains(Redirection::MASKED)
            && self.connected.is_some()
            && self.route.trigger().is_ok()
    }
}

/// The line into one pin.
struct Line {
    ioapic: Arc<Ioapic>,
    pin: usize,
}

impl IrqLine for Line {
    fn set_level(&self, asserted: bool) {
        if let Some(pin) = self.ioapic.lock().pins.get_mut(self.pin) {
            pin.set_level(asserted);
        }
    }
}

impl BusDevice for Ioapic {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let state = self.lock();
        let value = match offset {
            SELECT => u32::from(state.select),
            WINDOW => state.read_register(),
            _ => return Err(AccessError::NoRegister { offset }),
        };
        let width = data.len();
        let data: &mut [u8; 4] = data
            .try_into()
            .map_err(|_| AccessError::Width { offset, width })?;
        *data = value.to_le_bytes();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let width = data.len();
        let data: [u8; 4] = data
            .try_into()
            .map_err(|_| AccessError::Width { offset, width })?;
        let [low, ..] = data;
        match offset {
            SELECT => self.lock().select = low,
            WINDOW => {
                let ended = self.lock().write_register(u32::from_le_bytes(data));
                for observer in ended {
                    observer.ended();
                }
            }
            EOI => self.eoi(low),
            _ => return Err(AccessError::NoRegister { offset }),
        }
        Ok(())
    }
}
