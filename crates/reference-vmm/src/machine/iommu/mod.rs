//! The IOMMU that stands before a machine's devices.

mod vtd;

use std::io;

use iommu_emul::dmar::DmarError;
use iommu_emul::vtd::CapabilityError;

pub(super) use vtd::Vtd;

/// Which IOMMU a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iommu {
    /// An Intel VT-d unit, with interrupt remapping.
    Vtd(VtdOptions),
}

/// What a VT-d unit can do besides the usual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VtdOptions {
    /// The guest has to invalidate what it makes present too (VT-d §6.1). Linux then never defers invalidations.
    pub caching_mode: bool,
    /// Scalable mode (VT-d §3.4.3), with first-stage and nested translation and PASIDs of 20 bits.
    pub scalable: bool,
    /// The unit is emulated by a thread that polls its first register page, so that accesses to it do not exit.
    pub sidecore: bool,
}

/// Why a machine could not have an IOMMU.
#[derive(Debug, thiserror::Error)]
pub enum IommuError {
    /// Only PCI functions on bus 0 have an identity that an IOMMU knows and that does not change.
    #[error("with an IOMMU, virtio devices have to be PCI functions on bus 0 (`--transport pci`)")]
    Transport,
    /// The unit's capabilities contradict each other.
    #[error("VT-d: {0}")]
    Capabilities(#[from] CapabilityError),
    /// The table that announces it could not be made.
    #[error("DMAR table: {0}")]
    Table(#[from] DmarError),
    /// No thread.
    #[error("sidecore: {0}")]
    Sidecore(#[source] io::Error),
    /// No memory for the page that guest and sidecore share.
    #[error("the sidecore's register page: {0}")]
    Page(#[from] vm_memory::mmap::FromRangesError),
}
