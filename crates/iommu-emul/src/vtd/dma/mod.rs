//! DMA through a unit: what a device sees of memory, and what its translations are cached in.

mod iotlb;
mod lane;
mod source;
mod view;

pub(super) use lane::Draining;
use lane::Entered;
use lane::Lane;
pub(super) use source::Source;
pub use view::{DmaGuard, DmaMemory, DmaSlices, DmaView};
