//! What each fuzz target runs, as plain functions that stable tests call too.

pub mod block;
pub mod bus;
pub mod grant;
mod input;
pub mod iommu;
pub mod net;
pub mod pci;
pub mod sriov;
pub mod virtio_iommu;
pub mod vpio;
pub mod vring;
