use std::io;
use std::sync::{Arc, Weak};

use pio_mmio_bus::interrupt::{EndObserver, Ioapic, IrqLine};
use pio_mmio_bus::pci::{InterruptPin, IntxLines, IntxPin};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::intx_gsi;
use crate::kvm::{KvmError, Vm};
use crate::machine::watch::Watch;

/// The interrupt pin of a function as two eventfds, for a device that only tells when its pin rises: VFIO's.
///
/// To signal [`trigger`](Self::trigger) asserts the pin. When the guest ends the interrupt the pin is deasserted, and
/// [`resample`](Self::resample) signalled: who still asserts it has to trigger again.
pub struct ResampledPin {
    trigger: EventFd,
    resample: EventFd,
    _watch: Option<Watch>,
}

impl ResampledPin {
    /// A pin of device number `device` on bus 0, wired to the in-kernel interrupt controllers: the kernel does it all.
    pub(super) fn of_kernel(vm: &Vm, device: u8, pin: InterruptPin) -> Result<Self, KvmError> {
        let [trigger, resample] = eventfds()?;
        let gsi = intx_gsi(device, pin.register().saturating_sub(1));
        vm.register_irqfd_with_resample(&trigger, &resample, gsi)
            .map_err(KvmError::call("register a resampling interrupt eventfd"))?;
        Ok(Self {
            trigger,
            resample,
            _watch: None,
        })
    }

    /// A pin among `lines`, which lead to an I/O APIC in user space: a thread asserts it.
    pub fn of_user(
        ioapic: &Ioapic,
        lines: &IntxLines,
        device: u8,
        pin: InterruptPin,
    ) -> Result<Self, KvmError> {
        let [trigger, resample] = eventfds()?;
        let asserted = Arc::new(Asserted {
            pin: lines.pin(device, pin),
            resample: clone(&resample)?,
        });
        let observer: Weak<Asserted> = Arc::downgrade(&asserted);
        let gsi = intx_gsi(device, pin.register().saturating_sub(1));
        ioapic.observe(usize::try_from(gsi).unwrap_or(usize::MAX), observer);
        let assert = Box::new(move || asserted.pin.set_level(true));
        let watch = Watch::spawn("intx", vec![(clone(&trigger)?, assert)]).map_err(call)?;
        Ok(Self {
            trigger,
            resample,
            _watch: Some(watch),
        })
    }

    /// What asserts the pin.
    pub fn trigger(&self) -> &EventFd {
        &self.trigger
    }

    /// What is signalled when the guest ended the interrupt.
    pub fn resample(&self) -> &EventFd {
        &self.resample
    }
}

fn eventfds() -> Result<[EventFd; 2], KvmError> {
    let new = || EventFd::new(EFD_NONBLOCK).map_err(call);
    Ok([new()?, new()?])
}

fn clone(eventfd: &EventFd) -> Result<EventFd, KvmError> {
    eventfd.try_clone().map_err(call)
}

fn call(source: io::Error) -> KvmError {
    KvmError::Call {
        what: "create an interrupt eventfd",
        source,
    }
}

/// A pin that is asserted until the guest ends the interrupt.
struct Asserted {
    pin: Arc<IntxPin>,
    resample: EventFd,
}

impl EndObserver for Asserted {
    fn ended(&self) {
        // The end may be that of another's interrupt on the same line.
        if self.pin.asserted() {
            self.pin.set_level(false);
            // An eventfd that its reader drains does not overflow.
            let _ = self.resample.write(1);
        }
    }
}
