use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pio_mmio_bus::interrupt::IrqLine;

use super::spec::Isr;

/// The pending causes of a level interrupt, and its line: asserted while any cause is pending.
pub(super) struct IsrLine {
    line: Arc<dyn IrqLine>,
    pending: Mutex<Isr>,
}

impl IsrLine {
    pub(super) fn new(line: Arc<dyn IrqLine>) -> Self {
        Self {
            line,
            pending: Mutex::new(Isr::empty()),
        }
    }

    pub(super) fn pending(&self) -> Isr {
        *self.lock()
    }

    /// Adds a cause.
    pub(super) fn raise(&self, cause: Isr) {
        let mut pending = self.lock();
        if pending.is_empty() {
            self.line.set_level(true);
        }
        pending.insert(cause);
    }

    /// Clears these causes and returns what was pending before.
    pub(super) fn clear(&self, causes: Isr) -> Isr {
        let mut pending = self.lock();
        let before = *pending;
        pending.remove(causes);
        if pending.is_empty() && !before.is_empty() {
            self.line.set_level(false);
        }
        before
    }

    fn lock(&self) -> MutexGuard<'_, Isr> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
