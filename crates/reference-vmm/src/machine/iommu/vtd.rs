use std::sync::Arc;

use iommu_emul::dmar::{DeviceScope, Dmar, Drhd};
use iommu_emul::vtd::{Config, DmaView, Remapper, Unit};
use pio_mmio_bus::bus::{Bus, BusError};
use pio_mmio_bus::interrupt::MsiRouter;

use super::{IommuError, VtdOptions};
use crate::irq::{IOAPIC_REQUESTER, KvmRouter, KvmSink};
use crate::kvm::Vm;
use crate::machine::Memory;
use crate::machine::layout::{IOAPIC_ID, VTD};
use crate::machine::virtio::Views;

/// A VT-d unit that all PCI functions and the I/O APIC are behind.
pub(in crate::machine) struct Vtd {
    unit: Arc<Unit<Memory>>,
}

impl Vtd {
    /// A unit for `vm`, whose physical addresses have `address_bits` bits.
    pub(in crate::machine) fn new(
        options: VtdOptions,
        vm: &Vm,
        address_bits: u8,
    ) -> Result<Self, IommuError> {
        let VtdOptions {
            caching_mode,
            scalable,
        } = options;
        let config = Config {
            host_address_width: address_bits.clamp(32, 52),
            caching_mode,
            scalable,
            first_stage: scalable,
            nested: scalable,
            pasid_bits: if scalable { 20 } else { 0 },
            ..Config::default()
        };
        let sink = Arc::new(KvmSink::new(vm.clone()));
        Ok(Self {
            unit: Unit::new(config.capabilities()?, vm.memory().clone(), sink),
        })
    }

    /// Remaps what goes to `router`.
    pub(in crate::machine) fn remapper(&self, router: KvmRouter) -> Arc<dyn MsiRouter> {
        Arc::new(Remapper::new(Arc::clone(&self.unit), Arc::new(router)))
    }

    /// Memory as devices see it through the unit.
    pub(in crate::machine) fn views(&self) -> Views<DmaView<Memory>> {
        let unit = Arc::clone(&self.unit);
        Views {
            view: Box::new(move |requester| unit.view(requester)),
            translated: true,
        }
    }

    /// Puts the registers on the bus.
    pub(in crate::machine) fn place(&self, mmio: &Bus) -> Result<(), BusError> {
        let size = self.unit.capabilities().register_bytes();
        mmio.insert(VTD, size, "VT-d unit", self.unit.clone())?;
        Ok(())
    }

    /// The ACPI table that announces the unit.
    pub(in crate::machine) fn dmar(&self) -> Result<Dmar, IommuError> {
        let capabilities = self.unit.capabilities();
        let mut dmar = Dmar::new(capabilities, false);
        dmar.drhd(&Drhd {
            base: VTD,
            register_bytes: capabilities.register_bytes(),
            segment: 0,
            include_all: true,
            scopes: &[DeviceScope::IoApic {
                id: IOAPIC_ID,
                requester: IOAPIC_REQUESTER,
            }],
        })?;
        Ok(dmar)
    }
}
