//! The IOMMU that stands before a machine's devices.

mod virtio;
mod vtd;

use std::io;
use std::sync::Arc;

use iommu_emul::dma::DmaView;
use iommu_emul::dmar::DmarError;
use iommu_emul::sidecore::Counters;
use iommu_emul::viot::ViotFull;
use iommu_emul::vtd::CapabilityError;
use pio_mmio_bus::interrupt::MsiRouter;

use super::board::Motherboard;
use super::virtio::Views;
use super::{MachineError, Memory};
use crate::acpi::IommuTable;
use crate::irq::KvmRouter;
use crate::kvm::{Irqchip, Vm};
use virtio::VirtioIommu;
use vtd::Vtd;

/// Which IOMMU a machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iommu {
    /// An Intel VT-d unit, with interrupt remapping.
    Vtd(VtdOptions),
    /// A virtio-iommu. Interrupts do not go through it.
    Virtio,
}

impl Iommu {
    /// Which interrupt controllers the kernel may have: a remapper has to see what the I/O APIC sends.
    pub(super) fn irqchip(self) -> Irqchip {
        match self {
            Self::Vtd(_) => Irqchip::Split,
            Self::Virtio => Irqchip::Full,
        }
    }

    /// Whether what the guest maps can be carried over for a function of the host: the guest must tell of it, and in second-stage tables.
    pub(super) fn shadows(self) -> bool {
        matches!(
            self,
            Self::Vtd(VtdOptions {
                caching_mode: true,
                scalable: false,
                sidecore: _,
            })
        )
    }
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
    /// Only PCI functions have an identity that an IOMMU knows.
    #[error(
        "with an IOMMU, virtio devices have to be PCI functions (`--transport pci` or `pci-ports`)"
    )]
    Transport,
    /// The unit's capabilities contradict each other.
    #[error("VT-d: {0}")]
    Capabilities(#[from] CapabilityError),
    /// The table that announces it could not be made.
    #[error("DMAR table: {0}")]
    Dmar(#[from] DmarError),
    /// The table that announces it could not be made.
    #[error("VIOT table: {0}")]
    Viot(#[from] ViotFull),
    /// No thread.
    #[error("sidecore: {0}")]
    Sidecore(#[source] io::Error),
    /// No memory for the page that guest and sidecore share.
    #[error("the sidecore's register page: {0}")]
    Page(#[from] vm_memory::mmap::FromRangesError),
}

/// The IOMMU of a machine in the making, and after.
pub(super) enum Translation {
    Vtd(Vtd),
    Virtio(VirtioIommu),
}

impl Translation {
    /// An IOMMU for `vm`, whose physical addresses have `address_bits` bits.
    pub(super) fn new(iommu: Iommu, vm: &Vm, address_bits: u8) -> Result<Self, IommuError> {
        Ok(match iommu {
            Iommu::Vtd(options) => Self::Vtd(Vtd::new(options, vm, address_bits)?),
            Iommu::Virtio => Self::Virtio(VirtioIommu::new(vm.memory().clone())),
        })
    }

    /// What devices send messages through on their way to `router`.
    pub(super) fn remapper(&self, router: KvmRouter) -> Arc<dyn MsiRouter> {
        match self {
            Self::Vtd(vtd) => vtd.remapper(router),
            Self::Virtio(_) => Arc::new(router),
        }
    }

    /// Memory as devices see it.
    pub(super) fn views(&self) -> Views<DmaView<Memory>> {
        match self {
            Self::Vtd(vtd) => vtd.views(),
            Self::Virtio(virtio) => virtio.views(),
        }
    }

    /// Puts it where the guest finds it.
    pub(super) fn place(&mut self, vm: &Vm, board: &Motherboard) -> Result<(), MachineError> {
        match self {
            Self::Vtd(vtd) => vtd.place(vm, board),
            Self::Virtio(virtio) => virtio.place(board),
        }
    }

    /// The ACPI table that announces it.
    pub(super) fn table(&self) -> Result<IommuTable, IommuError> {
        Ok(match self {
            Self::Vtd(vtd) => IommuTable::Dmar(vtd.dmar()?),
            Self::Virtio(virtio) => IommuTable::Viot(virtio.viot()?),
        })
    }

    /// Ends its work.
    pub(super) fn pause(&self) {
        if let Self::Virtio(virtio) = self {
            virtio.pause();
        }
    }

    /// What its sidecore did, if it has one.
    pub(super) fn counters(&self) -> Option<Counters> {
        match self {
            Self::Vtd(vtd) => vtd.counters(),
            Self::Virtio(_) => None,
        }
    }
}
