//! The board's own devices, what a PC has besides PCI, and a PCI device to learn from.

pub mod cmos;
pub mod edu;
pub mod exit;
pub mod keyboard;
pub mod panic;
pub mod power;
pub mod serial;
