//! DMA through an IOMMU, whichever it is: what a device sees of memory, and what its translations are cached in.

mod cache;
mod iotlb;
mod lane;
mod leaf;
mod view;

pub(crate) use cache::Cache;
pub(crate) use lane::{Draining, Lane};
pub use leaf::Access;
pub(crate) use leaf::Leaf;
pub(crate) use view::Translator;
pub use view::{DmaGuard, DmaMemory, DmaSlices, DmaView, PhysicalMemory};
