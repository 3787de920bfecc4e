use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::RequesterId;
use super::bar::PlacedBar;
use super::function::{CapabilityHandler, PciFunction};
use super::intx::IntxPin;
use super::registers::{Registers, within};
use super::spec::express::DeviceControl;
use super::spec::{COMMAND, CONFIG_SPACE_SIZE, Command, STATUS, Status};
use crate::bus::{AddressSpace, RegionId};

/// The bit of the upper byte of the device control register that starts a reset (PCIe §7.5.3.4).
const INITIATE_RESET: u8 = DeviceControl::INITIATE_RESET.bits().to_le_bytes()[1];

/// The configuration space of an emulated function: header, BARs, capabilities.
///
/// Made by a [`ConfigBuilder`](super::ConfigBuilder). It places the BARs on the bus as the guest programs and enables
/// them, silences the interrupt pin, resets the function when the guest asks through the PCI Express capability, and lets
/// [`CapabilityHandler`]s take part.
pub struct ConfigSpace {
    pub(super) registers: Mutex<Registers>,
    pub(super) bars: Vec<PlacedBar>,
    pub(super) handlers: Vec<Handled>,
    pub(super) interrupt: Option<Arc<IntxPin>>,
    /// Where the device control register is, if the function can be reset through it.
    pub(super) device_control: Option<usize>,
    pub(super) requester: AtomicU16,
    /// Whether the bridges above forward its requests. Changed with the registers locked.
    pub(super) upstream: AtomicBool,
}

/// A capability with a handler.
pub(super) struct Handled {
    pub(super) window: Range<usize>,
    pub(super) handler: Arc<dyn CapabilityHandler>,
}

/// What the guest can see of a [`ConfigSpace`]. The state of handlers is saved by their owners.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSpaceState {
    /// All 4096 bytes.
    pub registers: Vec<u8>,
}

/// Why a saved configuration space was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigStateError {
    /// It is not 4096 bytes long.
    #[error("configuration space of {0} bytes, must be {CONFIG_SPACE_SIZE}")]
    Length(usize),
    /// It is of another function: a bit differs that the guest cannot write.
    #[error(
        "read-only register at {offset:#x} is {saved:#04x} in the state and {expected:#04x} in the function"
    )]
    ReadOnly {
        /// Offset of the byte.
        offset: usize,
        /// Its saved value.
        saved: u8,
        /// Its value in this function.
        expected: u8,
    },
    /// A capability cannot have the value: no sequence of writes leads there.
    #[error("the capability at {offset:#x} cannot be in the saved state")]
    Unreachable {
        /// Where the capability starts.
        offset: usize,
    },
}

impl ConfigSpace {
    /// The region of the BAR whose first register is number `index`: to put doorbells or hooks on, which follow it wherever the
    /// guest moves it.
    pub fn bar_region(&self, index: usize) -> Option<(AddressSpace, RegionId)> {
        let bar = self.bars.iter().find(|bar| bar.index == index)?;
        Some((bar.region.space(), bar.region.id()))
    }

    /// The identity of the function on its bus, as last programmed.
    pub fn requester(&self) -> RequesterId {
        RequesterId(self.requester.load(Ordering::Relaxed))
    }

    /// Saves the registers.
    pub fn save(&self) -> ConfigSpaceState {
        ConfigSpaceState {
            registers: self.lock().slice(0..CONFIG_SPACE_SIZE).to_vec(),
        }
    }

    /// Takes over saved registers: places the BARs, tells the handlers. Refuses, and changes nothing, if they are of another
    /// function.
    pub fn restore(&self, state: &ConfigSpaceState) -> Result<(), ConfigStateError> {
        let ConfigSpaceState { registers: saved } = state;
        let mut registers = self.lock();
        for Handled { window, handler } in &self.handlers {
            let Some(wanted) = saved.get(window.clone()) else {
                return Err(ConfigStateError::Length(saved.len()));
            };
            let mut possible = wanted.to_vec();
            handler.constrain(registers.initial(window.clone()), &mut possible);
            if possible != wanted {
                let offset = window.start;
                return Err(ConfigStateError::Unreachable { offset });
            }
        }
        registers.restore(saved)?;
        self.apply(&registers, &(0..CONFIG_SPACE_SIZE));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets changed registers take effect.
    fn apply(&self, registers: &Registers, range: &Range<usize>) {
        let command = Command::from_bits_truncate(registers.u16(COMMAND));
        let commanded = within(range, &(COMMAND..COMMAND + 2)).is_some();
        if let Some(pin) = self.interrupt.as_ref().filter(|_| commanded) {
            pin.set_disabled(command.contains(Command::INTX_DISABLE));
        }
        for bar in &self.bars {
            let offset = PlacedBar::offset(bar.index);
            let window = offset..offset + 4 * bar.kind.registers();
            if commanded || within(range, &window).is_some() {
                bar.decode(registers, command);
            }
        }
        if commanded {
            self.apply_bus_master(command);
        }
        for Handled { window, handler } in &self.handlers {
            if let Some(part) = within(range, window) {
                handler.written(registers.slice(window.clone()), part);
            }
        }
    }

    fn apply_bus_master(&self, command: Command) {
        let enabled =
            command.contains(Command::BUS_MASTER) && self.upstream.load(Ordering::Relaxed);
        for Handled { handler, .. } in &self.handlers {
            handler.set_bus_master(enabled);
        }
    }

    fn reset_registers(&self, registers: &mut Registers) {
        for Handled { handler, .. } in &self.handlers {
            handler.reset();
        }
        registers.reset();
        self.apply(registers, &(0..CONFIG_SPACE_SIZE));
    }
}

impl PciFunction for ConfigSpace {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let registers = self.lock();
        let start = usize::from(offset);
        registers.read(start, data);
        let range = start..start.saturating_add(data.len());
        if self.interrupt.as_ref().is_some_and(|pin| pin.asserted())
            && let Some(byte) = STATUS.checked_sub(start).and_then(|at| data.get_mut(at))
        {
            *byte |= Status::INTERRUPT.bits().to_le_bytes()[0];
        }
        for Handled { window, handler } in &self.handlers {
            let Some(part) = within(&range, window) else {
                continue;
            };
            let mut capability = registers.slice(window.clone()).to_vec();
            handler.refresh(&mut capability, part.clone());
            let at = (window.start + part.start).saturating_sub(start);
            let fresh = capability.get(part).unwrap_or_default();
            for (to, from) in data.iter_mut().skip(at).zip(fresh) {
                *to = *from;
            }
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut registers = self.lock();
        let start = usize::from(offset);
        let control = self
            .device_control
            .and_then(|at| (at + 1).checked_sub(start))
            .and_then(|at| data.get(at));
        if control.is_some_and(|upper| upper & INITIATE_RESET != 0) {
            self.reset_registers(&mut registers);
        } else {
            let range = start..start.saturating_add(data.len());
            let before: Vec<_> = self
                .handlers
                .iter()
                .filter(|handled| within(&range, &handled.window).is_some())
                .map(|handled| (handled, registers.slice(handled.window.clone()).to_vec()))
                .collect();
            registers.write(start, data);
            for (Handled { window, handler }, before) in before {
                let mut after = registers.slice(window.clone()).to_vec();
                handler.constrain(&before, &mut after);
                registers.set(window.start, &after);
            }
            self.apply(&registers, &range);
        }
    }

    fn set_requester(&self, requester: RequesterId) {
        self.requester.store(requester.0, Ordering::Relaxed);
        for Handled { handler, .. } in &self.handlers {
            handler.set_requester(requester);
        }
    }

    fn set_upstream(&self, forwarded: bool) {
        let registers = self.lock();
        if self.upstream.swap(forwarded, Ordering::Relaxed) != forwarded {
            self.apply_bus_master(Command::from_bits_truncate(registers.u16(COMMAND)));
        }
    }

    fn reset(&self) {
        self.reset_registers(&mut self.lock());
    }
}
