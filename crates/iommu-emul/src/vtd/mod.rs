//! The VT-d remapping unit.

mod capability;
mod dma;
mod drain;
mod event;
mod fault_log;
mod interrupt;
mod invalidation;
pub(crate) mod memory;
mod queue;
mod registers;
mod state;
mod unit;
pub(crate) mod walk;

pub use capability::{Capabilities, CapabilityError, Config};
pub use dma::{DmaGuard, DmaMemory, DmaSlices, DmaView};
pub use interrupt::Remapper;
pub use invalidation::{Invalidation, InvalidationObserver};
pub use memory::PhysicalMemory;
pub use state::{StateError, UnitState};
pub use unit::Unit;
pub use walk::Access;
