//! A port by which a guest ends the machine with a status, for test kernels (as QEMU's isa-debug-exit).

use std::sync::Arc;

use pio_mmio_bus::bus::{AccessError, BusDevice};

use crate::machine::stop::{Stop, StopSwitch};

/// Number of ports.
pub const SIZE: u16 = 4;

/// Stops the machine at the first write, of any width, with what was written.
pub struct DebugExit {
    stop: Arc<StopSwitch>,
}

impl DebugExit {
    /// A port that throws `stop`.
    pub fn new(stop: Arc<StopSwitch>) -> Self {
        Self { stop }
    }
}

impl BusDevice for DebugExit {
    fn read(&self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(0);
        Ok(())
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let value = data
            .iter()
            .rev()
            .fold(0u32, |value, byte| value << 8 | u32::from(*byte));
        self.stop.throw(Stop::Exit(value));
        Ok(())
    }
}
