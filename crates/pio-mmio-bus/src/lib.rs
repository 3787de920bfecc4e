//! Port and memory-mapped I/O: dispatch, hooks, doorbells, PCI, interrupts and exit accounting.

pub mod bus;
pub mod interrupt;
pub mod pci;
