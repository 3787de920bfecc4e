//! Interrupts and doorbells through KVM: the traits of `pio-mmio-bus` over irqfd, ioeventfd and the GSI routing table.

mod controller;
mod doorbell;
mod line;
mod pin;
mod router;
mod sink;

pub use controller::{Controller, ControllerError, IOAPIC_REQUESTER};
pub use doorbell::IoEvents;
pub use line::{EdgeLine, GsiLine};
pub use pin::ResampledPin;
pub use router::KvmRouter;
pub use sink::KvmSink;

/// Number of pins of the I/O APIC, which are the first GSIs.
pub const IOAPIC_PINS: u32 = 24;

/// First of the four GSIs that the interrupt pins of PCI functions are wired to.
const INTX_BASE: u32 = 16;

/// GSIs that no device of the board uses, for virtio-mmio devices.
pub const FREE_GSIS: [u32; 12] = [5, 6, 7, 9, 10, 11, 12, 13, 20, 21, 22, 23];

/// The GSI that interrupt pin `pin` (INTA is 0) of device `device` on bus 0 is wired to: the pins are rotated so that the
/// lines are shared evenly (PCI-to-PCI Bridge Architecture Specification §9.1, table 9-1).
pub fn intx_gsi(device: u8, pin: u8) -> u32 {
    INTX_BASE + u32::from(device.wrapping_add(pin) % 4)
}
