//! Devices that VFIO gives to user space, above the ioctls.
//!
//! [`VfioHost`], [`VfioSpace`] and [`VfioDevice`] are what is asked of the kernel; `kernel` (feature `vfio`) asks a real one, [`fake`] answers by
//! itself, for tests and fuzzers. [`AssignedFunction`] puts a device on a guest's bus: its configuration space is what a [`VirtualConfig`] makes of
//! it, its BARs are checked and decoded where the guest places them, and shown there through a VMM's [`GuestWindows`], its MSI and MSI-X
//! vectors are routes of the VMM's, its interrupt pin two eventfds. [`map_guest_memory`] lets a
//! device reach the guest's memory; `iommu` (feature `iommu`) only what an emulated IOMMU maps.

mod config;
mod device;
pub mod fake;
mod function;
mod interrupts;
#[cfg(feature = "iommu")]
pub mod iommu;
#[cfg(feature = "vfio")]
pub mod kernel;
mod memory;
mod migration;
mod open;
mod space;
mod token;
mod vectors;
mod window;

pub use config::{
    ConfigPolicyError, Effects, MsiPlace, MsixPlace, PhysicalBar, Policy, VirtualConfig,
};
pub use device::{Holder, Interrupt, Region, RegionIndex, SlotFunction, VfioDevice};
pub use function::{AssignError, AssignedFunction, Notice, reset_functions};
pub use memory::{DmaError, HostMemory, map_guest_memory, unmap_guest_memory};
pub use migration::{AssignedState, DeviceState, Migration, MigrationError};
pub use open::OpenError;
pub use space::{Access, DmaSpace, VfioHost, VfioSpace};
pub use token::{TokenError, VfToken};
pub use window::{GuestWindow, GuestWindows};
