//! The VT-d remapping unit.

mod capability;
mod drain;
mod event;
mod fault_log;
mod interrupt;
mod invalidation;
pub(crate) mod memory;
mod queue;
mod registers;
mod source;
mod state;
mod unit;
pub(crate) mod walk;

pub use crate::dma::{Access, DmaGuard, DmaMemory, DmaSlices, DmaView, PhysicalMemory};
pub use capability::{Capabilities, CapabilityError, Config};
pub use interrupt::Remapper;
pub use invalidation::{Invalidation, InvalidationObserver};
pub use state::{StateError, UnitState};
pub use unit::Unit;
