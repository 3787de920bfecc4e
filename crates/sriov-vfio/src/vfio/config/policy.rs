use pio_mmio_bus::pci::spec::{capability_id, express, msix};

use super::registers::MsiPlace;
use crate::spec::{capability, extended};

/// What is shown of a device. By default only what a guest can use without the host's help; what is not named is hidden.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// Vendor and device ID to show: a virtual function has none of its own.
    pub identity: Option<(u16, u16)>,
    /// Whether the VMM delivers INTx; otherwise the function has no interrupt pin.
    pub intx: bool,
    /// Shows SR-IOV.
    pub sriov: bool,
    /// Shows address translation services.
    pub ats: bool,
    /// Shows process address space IDs.
    pub pasid: bool,
    /// Shows resizable BARs.
    pub resizable_bar: bool,
}

/// What becomes of a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// The guest does not see it.
    Hidden,
    /// It reads as the device does and cannot be written.
    ReadOnly,
    /// Reads and writes go to the device.
    Direct,
    /// Power states are taken and mean nothing.
    Power,
    /// PCI Express: reads as the device does; what controls the link is taken and means nothing, a reset is carried out.
    Express,
    /// MSI-X: the VMM's.
    Msix,
    /// MSI: the VMM's.
    Msi,
}

impl Policy {
    /// What becomes of a capability, and its length: `word` is the one after its header, which says length, version or form.
    pub(super) fn standard(self, id: u8, word: u16) -> (Treatment, usize) {
        let [third, _] = word.to_le_bytes();
        match id {
            capability::POWER => (Treatment::Power, capability::POWER_LENGTH),
            capability_id::EXPRESS if u16::from(third & 0xf) < express::VERSION => {
                (Treatment::Express, capability::EXPRESS_1_LENGTH)
            }
            capability_id::EXPRESS => (Treatment::Express, express::LENGTH),
            capability_id::MSIX => (Treatment::Msix, msix::LENGTH),
            capability_id::MSI => (Treatment::Msi, MsiPlace::new(0, word).length()),
            capability_id::VENDOR => (Treatment::Direct, third.into()),
            capability::VITAL_PRODUCT_DATA => (Treatment::Direct, 8),
            _ => (Treatment::Hidden, 0),
        }
    }

    /// The same for an extended one: `vendor_header` is the word after its header.
    pub(super) fn extended(self, id: u16, vendor_header: u32) -> (Treatment, usize) {
        let asked = |asked: bool, length| match asked {
            true => (Treatment::Direct, length),
            false => (Treatment::Hidden, 0),
        };
        match id {
            extended::ERROR_REPORTING => (Treatment::ReadOnly, 0x48),
            extended::SERIAL_NUMBER => (Treatment::ReadOnly, 12),
            extended::LATENCY_TOLERANCE => (Treatment::ReadOnly, 8),
            extended::VENDOR => {
                let length = usize::try_from(vendor_header >> 20).unwrap_or(0);
                (Treatment::Direct, length)
            }
            extended::SRIOV => asked(self.sriov, crate::spec::sriov::LENGTH),
            extended::ATS => asked(self.ats, 8),
            extended::PASID => asked(self.pasid, 8),
            extended::RESIZABLE_BAR => asked(self.resizable_bar, 12),
            _ => (Treatment::Hidden, 0),
        }
    }
}
