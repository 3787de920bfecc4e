//! The IOMMU device (Virtio 1.3, §5.13): the driver asks for domains and mappings with requests, and learns of blocked accesses
//! from events.

mod device;
mod faults;
mod requests;
pub mod spec;

pub use device::{Iommu, IommuError, IommuState};
