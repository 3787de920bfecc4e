//! How a driver finds, sets up and drives a device (virtio 1.3 §3, §4).
//!
//! [`MmioTransport`] is a set of registers. It decodes accesses and leaves what they mean to one status machine, shared by all
//! transports, which decides when a register may be written, when queues start and stop, and what a reset does.

mod isr;
mod mmio;
pub mod spec;
mod status;

pub use mmio::{MmioState, MmioTransport};
pub use status::{QueueSetupState, RestoreError, TransportState};
