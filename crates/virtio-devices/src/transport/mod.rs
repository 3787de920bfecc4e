//! How a driver finds, sets up and drives a device (virtio 1.3 §3, §4).
//!
//! [`MmioTransport`] and [`PciTransport`] are sets of registers. They decode accesses and leave what they mean to one status machine, which decides when a register may be written, when queues start and stop, and what a reset does.

mod isr;
mod mmio;
mod pci;
pub mod spec;
mod status;
pub mod vhost_user;

pub use mmio::{MmioState, MmioTransport};
pub use pci::{PciError, PciOptions, PciParts, PciRestoreError, PciState, PciTransport};
pub use status::{QueueSetupState, RestoreError, TransportState};
