use pio_mmio_bus::interrupt::IrqLine;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::kvm::{KvmError, Vm};

/// A pin of the in-kernel interrupt controllers.
#[derive(Clone, Debug)]
pub struct GsiLine {
    vm: Vm,
    gsi: u32,
}

impl GsiLine {
    /// The pin that `gsi` is.
    pub fn new(vm: Vm, gsi: u32) -> Self {
        Self { vm, gsi }
    }
}

impl IrqLine for GsiLine {
    fn set_level(&self, asserted: bool) {
        // It can only fail for a GSI that does not exist.
        let _ = self.vm.set_irq_line(self.gsi, asserted);
    }
}

/// An edge-triggered pin of the in-kernel interrupt controllers, signalled without waking a thread (irqfd).
#[derive(Debug)]
pub struct EdgeLine(EventFd);

impl EdgeLine {
    /// The pin that `gsi` is.
    pub fn new(vm: &Vm, gsi: u32) -> Result<Self, KvmError> {
        let failed = |source| KvmError::Call {
            what: "create an interrupt eventfd",
            source,
        };
        let event = EventFd::new(EFD_NONBLOCK).map_err(failed)?;
        vm.register_irqfd(&event, gsi)
            .map_err(KvmError::call("register an interrupt eventfd"))?;
        Ok(Self(event))
    }
}

impl IrqLine for EdgeLine {
    fn set_level(&self, asserted: bool) {
        if asserted {
            // An eventfd that the kernel drains does not overflow.
            let _ = self.0.write(1);
        }
    }
}
