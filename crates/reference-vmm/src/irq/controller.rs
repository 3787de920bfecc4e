use std::sync::Arc;

use pio_mmio_bus::interrupt::{InterruptError, Ioapic, IrqLine, MsiRouter};
use pio_mmio_bus::pci::{InterruptPin, IntxLines, RequesterId};

use super::{EdgeLine, GsiLine, IOAPIC_PINS, KvmRouter, ResampledPin};
use crate::kvm::{Irqchip, KvmError, Vm};

/// Who an I/O APIC in user space is to an interrupt remapper: a function that no bus has.
pub const IOAPIC_REQUESTER: RequesterId = RequesterId(0xff00);

/// The interrupt controller of the board: where its lines and messages go.
pub struct Controller {
    router: Arc<dyn MsiRouter>,
    pins: Pins,
}

/// Where the pins are.
enum Pins {
    Kernel(Vm),
    User(Arc<Ioapic>),
}

/// Why a controller or a line into it could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The I/O APIC got no routes.
    #[error("the I/O APIC: {0}")]
    Routes(#[from] InterruptError),
    /// There is no such pin.
    #[error("the I/O APIC has {IOAPIC_PINS} pins, none with number {0}")]
    Pin(u32),
    /// KVM refused.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

impl Controller {
    /// The controller of `vm`. All messages, those of an I/O APIC in user space too, go through what `remapped` puts before KVM.
    pub fn new(
        vm: &Vm,
        remapped: impl FnOnce(KvmRouter) -> Arc<dyn MsiRouter>,
    ) -> Result<Self, ControllerError> {
        let router = remapped(KvmRouter::new(vm.clone()));
        let pins = match vm.irqchip() {
            Irqchip::Full => Pins::Kernel(vm.clone()),
            // The first to ask for routes: KVM takes the first GSIs for its pins.
            Irqchip::Split => Pins::User(Ioapic::new(IOAPIC_REQUESTER, &*router)?),
        };
        Ok(Self { router, pins })
    }

    /// Routes messages.
    pub fn router(&self) -> &Arc<dyn MsiRouter> {
        &self.router
    }

    /// The I/O APIC, if it is not in the kernel.
    pub fn ioapic(&self) -> Option<&Arc<Ioapic>> {
        match &self.pins {
            Pins::Kernel(_) => None,
            Pins::User(ioapic) => Some(ioapic),
        }
    }

    /// The level-triggered pin `gsi`, below [`IOAPIC_PINS`].
    pub fn line(&self, gsi: u32) -> Result<Arc<dyn IrqLine>, ControllerError> {
        match &self.pins {
            Pins::Kernel(vm) => Ok(Arc::new(GsiLine::new(vm.clone(), gsi))),
            Pins::User(ioapic) => user_line(ioapic, gsi),
        }
    }

    /// The edge-triggered pin `gsi`, below [`IOAPIC_PINS`].
    pub fn edge_line(&self, gsi: u32) -> Result<Arc<dyn IrqLine>, ControllerError> {
        match &self.pins {
            Pins::Kernel(vm) => Ok(Arc::new(EdgeLine::new(vm, gsi)?)),
            Pins::User(ioapic) => user_line(ioapic, gsi),
        }
    }

    /// A pin of device number `device` on bus 0, for a device that only tells when it rises. `lines` are those of bus 0, which lead here.
    pub fn resampled_pin(
        &self,
        lines: &IntxLines,
        device: u8,
        pin: InterruptPin,
    ) -> Result<ResampledPin, ControllerError> {
        Ok(match &self.pins {
            Pins::Kernel(vm) => ResampledPin::of_kernel(vm, device, pin)?,
            Pins::User(ioapic) => ResampledPin::of_user(ioapic, lines, device, pin)?,
        })
    }
}

fn user_line(ioapic: &Arc<Ioapic>, gsi: u32) -> Result<Arc<dyn IrqLine>, ControllerError> {
    usize::try_from(gsi)
        .ok()
        .and_then(|pin| ioapic.line(pin))
        .ok_or(ControllerError::Pin(gsi))
}
