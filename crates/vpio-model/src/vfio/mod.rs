//! A device of the kernel's VFIO behind its model.
//!
//! [`Modelled`] is a [`VfioDevice`](sriov_vfio::vfio::VfioDevice) around another: what puts a device on a guest's bus, as
//! [`AssignedFunction`](sriov_vfio::vfio::AssignedFunction) does, puts this one there as well. Configuration space is that one's matter;
//! registers and interrupts go by the model. [`GuestDma`] is what such a device may reach: the guest's memory, and the copies of descriptors.

pub(crate) mod counts;
mod memory;
mod modelled;
pub(crate) mod regions;
pub(crate) mod relay;

pub use counts::Counts;
pub use memory::{GuestDma, GuestDmaError};
pub use modelled::{Modelled, ModelledError};
