use std::sync::{Arc, Mutex, PoisonError};

use crate::interrupt::IrqLine;

/// One of the four interrupt pins of a device (PCI §2.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptPin {
    /// INTA#.
    A,
    /// INTB#.
    B,
    /// INTC#.
    C,
    /// INTD#.
    D,
}

impl InterruptPin {
    const fn index(self) -> u8 {
        match self {
            Self::A => 0,
            Self::B => 1,
            Self::C => 2,
            Self::D => 3,
        }
    }

    /// The value of the interrupt pin register: 1 for INTA# (PCI §6.2.4).
    pub const fn register(self) -> u8 {
        self.index() + 1
    }
}

/// The four interrupt lines that the pins of all functions share, as seen from one bus.
///
/// Pins are spread over the lines by device number, once more at each bridge (PCIe §2.2.8.1, Bridge §9.1).
#[derive(Clone)]
pub struct IntxLines {
    lines: Arc<[SharedLine; 4]>,
    /// By how much the bridges above rotate.
    rotation: u8,
}

impl IntxLines {
    /// The lines of the root bus.
    pub fn new(lines: [Arc<dyn IrqLine>; 4]) -> Self {
        Self {
            lines: Arc::new(lines.map(|line| SharedLine {
                line,
                asserted: Mutex::new(0),
            })),
            rotation: 0,
        }
    }

    /// The lines as seen from the bus behind the bridge that is device number `device` on this one.
    pub fn behind(&self, device: u8) -> Self {
        Self {
            lines: Arc::clone(&self.lines),
            rotation: self.rotation.wrapping_add(device) & 3,
        }
    }

    /// Which of the four lines `pin` of device number `device` on this bus drives, for the firmware's routing table.
    pub const fn line(&self, device: u8, pin: InterruptPin) -> usize {
        let line = self.rotation.wrapping_add(device).wrapping_add(pin.index());
        (line & 3) as usize
    }

    /// The pin of a function of device number `device` on this bus.
    pub fn pin(&self, device: u8, pin: InterruptPin) -> Arc<IntxPin> {
        Arc::new(IntxPin {
            pin,
            lines: Arc::clone(&self.lines),
            line: self.line(device, pin),
            state: Mutex::new(Pin::default()),
        })
    }
}

/// A line that is asserted as long as any of its pins is.
struct SharedLine {
    line: Arc<dyn IrqLine>,
    asserted: Mutex<usize>,
}

impl SharedLine {
    fn change(&self, asserted: bool) {
        let mut count = self.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        if asserted {
            *count = count.saturating_add(1);
            if *count == 1 {
                self.line.set_level(true);
            }
        } else {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.line.set_level(false);
            }
        }
    }
}

/// The interrupt pin of a function. Deasserted when dropped.
///
/// The device drives it as an [`IrqLine`]; the configuration space silences it when the guest sets INTx Disable and shows its
/// state in the status register.
pub struct IntxPin {
    pin: InterruptPin,
    lines: Arc<[SharedLine; 4]>,
    line: usize,
    state: Mutex<Pin>,
}

#[derive(Clone, Copy, Default)]
struct Pin {
    asserted: bool,
    disabled: bool,
}

impl Pin {
    const fn drives(self) -> bool {
        self.asserted && !self.disabled
    }
}

impl IntxPin {
    /// Which pin it is.
    pub fn pin(&self) -> InterruptPin {
        self.pin
    }

    /// Whether the device asserts it, disabled or not: the interrupt status bit (PCI §6.2.3).
    pub fn asserted(&self) -> bool {
        self.state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .asserted
    }

    pub(super) fn set_disabled(&self, disabled: bool) {
        self.change(|pin| pin.disabled = disabled);
    }

    fn change(&self, change: impl FnOnce(&mut Pin)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let before = state.drives();
        change(&mut state);
        if state.drives() != before
            && let Some(line) = self.lines.get(self.line)
        {
            line.change(!before);
        }
    }
}

impl IrqLine for IntxPin {
    fn set_level(&self, asserted: bool) {
        self.change(|pin| pin.asserted = asserted);
    }
}

impl Drop for IntxPin {
    fn drop(&mut self) {
        self.set_level(false);
    }
}
