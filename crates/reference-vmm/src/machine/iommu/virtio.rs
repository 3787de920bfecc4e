use std::sync::Arc;

use iommu_emul::dma::DmaView;
use iommu_emul::domain::{DomainConfig, Domains};
use iommu_emul::viot::Viot;
use pio_mmio_bus::pci::RequesterId;
use virtio_devices::iommu::Iommu;

use super::IommuError;
use crate::machine::board::Motherboard;
use crate::machine::devices::worker;
use crate::machine::virtio::{Transport, Views, VirtioDevices};
use crate::machine::{MachineError, Memory};

/// The last device of bus 0, so that others are where they are without an IOMMU.
const DEVICE: u8 = 31;

/// A virtio-iommu that all other PCI functions are behind.
pub(in crate::machine) struct VirtioIommu {
    domains: Arc<Domains<Memory>>,
    device: VirtioDevices<Memory>,
}

impl VirtioIommu {
    /// A device for `memory`. Functions that are in no domain pass.
    pub(in crate::machine) fn new(memory: Memory) -> Self {
        Self {
            domains: Domains::new(DomainConfig::default(), memory.clone()),
            device: VirtioDevices::new(Views::plain(memory), Transport::Pci, DEVICE),
        }
    }

    /// Memory as devices see it through their domains.
    pub(in crate::machine) fn views(&self) -> Views<DmaView<Memory>> {
        let domains = Arc::clone(&self.domains);
        Views {
            view: Arc::new(move |requester| domains.view(requester)),
            renumber: DmaView::set_requester,
            translated: true,
        }
    }

    /// Puts the device on its bus.
    pub(in crate::machine) fn place(&mut self, board: &Motherboard) -> Result<(), MachineError> {
        let device = Iommu::new(Arc::clone(&self.domains), worker("iommu")?);
        self.device.attach("iommu", Arc::new(device), board)
    }

    /// The ACPI table that announces the device.
    pub(in crate::machine) fn viot(&self) -> Result<Viot, IommuError> {
        let mut viot = Viot::new();
        let devfn = RequesterId::devfn_of(DEVICE, 0);
        let iommu = viot.virtio_pci(0, RequesterId::new(0, devfn))?;
        viot.pci_range(0, (RequesterId(0), RequesterId(u16::MAX)), iommu)?;
        Ok(viot)
    }

    /// Ends the work of the device.
    pub(in crate::machine) fn pause(&self) {
        self.device.pause();
    }
}
