//! Registers as the specifications lay them out.
//!
//! Section numbers: "PCIe" is the PCI Express Base Specification 6.0.

pub mod capability;
pub mod extended;
pub mod sriov;
