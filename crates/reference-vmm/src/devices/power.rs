//! The sleep registers of a hardware-reduced ACPI machine (ACPI 6.5 §4.8.3.7).

use std::sync::Arc;

use pio_mmio_bus::bus::{AccessError, BusDevice};

use crate::machine::stop::{Stop, StopSwitch};

/// First port.
pub const BASE: u16 = 0x600;
/// Number of ports.
pub const SIZE: u16 = 2;
/// Port of the sleep control register.
pub const CONTROL: u16 = BASE;
/// Port of the sleep status register.
pub const STATUS: u16 = BASE + 1;
/// The `SLP_TYP` that the DSDT gives for the soft-off state, S5.
pub const S5: u8 = 5;

/// Bit `SLP_EN` of the control register.
const SLEEP_ENABLE: u8 = 1 << 5;

/// Turns the machine off when the guest enters S5.
pub struct SleepRegisters {
    stop: Arc<StopSwitch>,
}

impl SleepRegisters {
    /// Registers that throw `stop`.
    pub fn new(stop: Arc<StopSwitch>) -> Self {
        Self { stop }
    }
}

impl BusDevice for SleepRegisters {
    fn read(&self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(0);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let value = match (offset, data) {
            (0, [value, ..]) => *value,
            _ => return Ok(()),
        };
        if value & SLEEP_ENABLE != 0 && (value >> 2) & 7 == S5 {
            self.stop.throw(Stop::PowerOff);
        }
        Ok(())
    }
}

/// What to write to [`CONTROL`] to turn the machine off.
pub const POWER_OFF: u8 = S5 << 2 | SLEEP_ENABLE;
