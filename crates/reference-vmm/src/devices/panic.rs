//! The pvpanic device: a guest's way to say that it panicked (QEMU, docs/specs/pvpanic.rst).

use std::sync::atomic::{AtomicBool, Ordering};

use pio_mmio_bus::bus::{AccessError, BusDevice};

/// The port.
pub const PORT: u16 = 0x505;

/// The guest panicked and will stop.
const PANICKED: u8 = 1 << 0;

/// Remembers that the guest panicked. The vCPU that wrote the port asks after its exit, since only it can say where.
#[derive(Debug, Default)]
pub struct PanicPort {
    panicked: AtomicBool,
}

impl PanicPort {
    /// Whether the guest reported a panic since the last call.
    pub fn take(&self) -> bool {
        self.panicked.load(Ordering::Relaxed) && self.panicked.swap(false, Ordering::Relaxed)
    }
}

impl BusDevice for PanicPort {
    fn read(&self, _offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(PANICKED);
        Ok(())
    }

    fn write(&self, _offset: u64, data: &[u8]) -> Result<(), AccessError> {
        if data.first().is_some_and(|events| events & PANICKED != 0) {
            self.panicked.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}
