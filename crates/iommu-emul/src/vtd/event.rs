use pio_mmio_bus::{interrupt::MsiMessage, pci::RequesterId};
use serde::{Deserialize, Serialize};

use crate::spec::register::{EVENT_ADDRESS_MASK, EVENT_DATA_MASK, EventControl};

/// The registers of an event interrupt: the fault event's or the invalidation event's (§11.4, "… Event Control Register" and the
/// three after it). The message goes to the interrupt controller as it is: hardware's own events are not remapped (§5.1.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Event {
    control: u32,
    data: u32,
    address: u32,
    upper_address: u32,
}

impl Event {
    pub fn new() -> Self {
        Self {
            control: EventControl::IM.bits(),
            data: 0,
            address: 0,
            upper_address: 0,
        }
    }

    fn control(&self) -> EventControl {
        EventControl::from_bits_truncate(self.control)
    }

    /// The register `index` registers after the control register.
    pub fn read(&self, index: u16) -> u32 {
        match index {
            0 => self.control,
            1 => self.data,
            2 => self.address,
            _ => self.upper_address,
        }
    }

    /// Writes a register; the message to send if that unmasked a pending one. The upper address exists only with `extended`
    /// interrupt mode.
    pub fn write(&mut self, index: u16, value: u32, extended: bool) -> Option<MsiMessage> {
        match index {
            0 => {
                let masked = EventControl::from_bits_truncate(value) & EventControl::IM;
                let pending = self.control() & EventControl::IP;
                if masked.is_empty() && !pending.is_empty() {
                    self.control = 0;
                    return Some(self.message());
                }
                self.control = (masked | pending).bits();
            }
            1 => self.data = value & EVENT_DATA_MASK,
            2 => self.address = value & EVENT_ADDRESS_MASK,
            _ if extended => self.upper_address = value,
            _ => {}
        }
        None
    }

    /// The event happened: the message to send, or none and it stays pending.
    pub fn raise(&mut self) -> Option<MsiMessage> {
        if self.control().contains(EventControl::IM) {
            self.control |= EventControl::IP.bits();
            None
        } else {
            Some(self.message())
        }
    }

    /// What the event told of is gone, and with it the pending message.
    pub fn withdraw(&mut self) {
        self.control = (self.control() - EventControl::IP).bits();
    }

    /// Whether no reserved field is set.
    pub fn valid(&self) -> bool {
        let Self {
            control,
            data,
            address,
            upper_address: _,
        } = *self;
        EventControl::from_bits(control).is_some()
            && data & !EVENT_DATA_MASK == 0
            && address & !EVENT_ADDRESS_MASK == 0
    }

    fn message(&self) -> MsiMessage {
        MsiMessage {
            requester: RequesterId(0),
            address: u64::from(self.upper_address) << 32 | u64::from(self.address),
            data: self.data,
        }
    }
}
