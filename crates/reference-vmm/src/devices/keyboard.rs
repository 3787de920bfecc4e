//! The i8042 keyboard controller, as far as a reset needs it.

use std::sync::{Arc, Mutex, PoisonError};

use pio_mmio_bus::bus::{AccessError, BusDevice};
use vm_superio::{I8042Device, Trigger};

use crate::machine::stop::{Stop, StopSwitch};

/// First port.
pub const BASE: u16 = 0x60;
/// Number of ports.
pub const SIZE: u16 = 5;
/// Port of the command register.
pub const COMMAND: u16 = BASE + 4;
/// The command that resets the processor.
pub const RESET: u8 = 0xfe;

/// All of this machine's firmware: what it does when it is entered is to reset. `mov al, RESET; out COMMAND, al`, then halt for
/// ever. Linux goes there to reset a hardware-reduced machine without EFI (arch/x86/kernel/reboot.c), and nowhere else.
pub const FIRMWARE: [u8; 7] = [
    0xb0,
    RESET,
    0xe6,
    COMMAND.to_le_bytes()[0],
    0xf4,
    0xeb,
    0xfd,
];

struct ResetPin(Arc<StopSwitch>);

impl Trigger for ResetPin {
    type E = std::convert::Infallible;

    fn trigger(&self) -> Result<(), Self::E> {
        self.0.throw(Stop::Reset);
        Ok(())
    }
}

/// The controller. No keyboard is attached.
pub struct KeyboardController {
    chip: Mutex<I8042Device<ResetPin>>,
}

impl KeyboardController {
    /// A controller whose reset command throws `stop`.
    pub fn new(stop: Arc<StopSwitch>) -> Self {
        Self {
            chip: Mutex::new(I8042Device::new(ResetPin(stop))),
        }
    }
}

impl BusDevice for KeyboardController {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let register = register(offset, data.len())?;
        let mut chip = self.chip.lock().unwrap_or_else(PoisonError::into_inner);
        data.fill(chip.read(register));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let register = register(offset, data.len())?;
        let mut chip = self.chip.lock().unwrap_or_else(PoisonError::into_inner);
        for value in data {
            let Ok(()) = chip.write(register, *value);
        }
        Ok(())
    }
}

/// All registers of the controller are one byte wide.
fn register(offset: u64, width: usize) -> Result<u8, AccessError> {
    match u8::try_from(offset) {
        Ok(register) if width == 1 => Ok(register),
        _ => Err(AccessError::Width { offset, width }),
    }
}
