use std::sync::Arc;
use std::time::Duration;

use iommu_emul::dma::DmaView;
use iommu_emul::dmar::{DeviceScope, Dmar, Drhd};
use iommu_emul::mapping::PhysicalIommu;
use iommu_emul::shadow::Shadow;
use iommu_emul::sidecore::{Backoff, Counters, PageControl, PolledUnit, Sidecore};
use iommu_emul::vtd::{Config, Remapper, Unit};
use pio_mmio_bus::interrupt::MsiRouter;
use pio_mmio_bus::pci::RequesterId;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{IommuError, VtdOptions};
use crate::irq::{IOAPIC_REQUESTER, KvmRouter, KvmSink};
use crate::kvm::{Vm, Window};
use crate::machine::board::Motherboard;
use crate::machine::layout::{IOAPIC_ID, VTD};
use crate::machine::stop::{Stop, StopSwitch};
use crate::machine::virtio::Views;
use crate::machine::{MachineError, Memory};

/// A VT-d unit that all PCI functions and the I/O APIC are behind.
pub(in crate::machine) struct Vtd {
    unit: Arc<Unit<Memory>>,
    sidecore: Option<Sidecore>,
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
            sidecore,
        } = options;
        let mut config = Config {
            host_address_width: address_bits.clamp(32, 52),
            caching_mode,
            scalable,
            first_stage: scalable,
            nested: scalable,
            // A guest whose devices are at fault several times before it looks learns of each.
            fault_records: 8,
            pasid_bits: if scalable { 20 } else { 0 },
            ..Config::default()
        };
        if sidecore {
            config = config.on_second_page();
        }
        let sidecore = sidecore
            .then(|| Sidecore::start(BACKOFF))
            .transpose()
            .map_err(IommuError::Sidecore)?;
        let sink = Arc::new(KvmSink::new(vm.clone()));
        Ok(Self {
            unit: Unit::new(config.capabilities()?, vm.memory().clone(), sink),
            sidecore,
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
            view: Arc::new(move |requester| unit.view(requester)),
            renumber: DmaView::set_requester,
            translated: true,
        }
    }

    /// Keeps `iommu` equal to what the guest maps for `requester`, as long as what is returned lives. The guest has to tell of
    /// what it maps, and in tables that can be shadowed ([`Iommu::shadows`](super::Iommu::shadows)).
    pub(in crate::machine) fn shadow<P: PhysicalIommu + Send + Sync + 'static>(
        &self,
        requester: RequesterId,
        iommu: P,
    ) -> Arc<Shadow<Memory, P>> {
        Shadow::new(Arc::clone(&self.unit), requester, iommu, SHADOW_BUDGET)
    }

    /// Puts the registers on the bus, and before the first page of them the sidecore's, if there is one.
    pub(in crate::machine) fn place(
        &self,
        vm: &Vm,
        board: &Motherboard,
    ) -> Result<(), MachineError> {
        let size = self.unit.capabilities().register_bytes();
        board
            .mmio
            .insert(VTD, size, "VT-d unit", self.unit.clone())?;
        let Some(sidecore) = &self.sidecore else {
            return Ok(());
        };
        let base = GuestAddress(VTD);
        let page = GuestMemoryMmap::from_ranges(&[(base, PAGE)])
            .map(Arc::new)
            .map_err(IommuError::Page)?;
        let window = Arc::new(vm.window(page.clone())?);
        let control = Box::new(Trap {
            window: window.clone(),
            stop: board.stop.clone(),
        });
        // The page is filled in before it is shown.
        let polled = PolledUnit::new(self.unit.clone(), page, base, control);
        window.show(Some(VTD))?;
        sidecore.attach(polled);
        Ok(())
    }

    /// What the sidecore did so far.
    pub(in crate::machine) fn counters(&self) -> Option<Counters> {
        self.sidecore.as_ref().map(Sidecore::counters)
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

/// Entries that a look at all of a guest's tables may take: those of 4 GiB in small pages.
const SHADOW_BUDGET: u64 = 1 << 20;

/// The sidecore may share its core with a vCPU that waits for it, so it soon lets others run.
const BACKOFF: Backoff = Backoff {
    spins: 100,
    yields: 1000,
    longest_sleep: Duration::from_micros(100),
};

/// Size of a page in bytes.
const PAGE: usize = 4096;

/// Has accesses to the first register page exit for a while.
struct Trap {
    window: Arc<Window>,
    stop: Arc<StopSwitch>,
}

impl PageControl for Trap {
    // KVM waits for accesses to the page. A trapped access that is still on its way to the unit when the page is shown again changes
    // the unit as it would have before, and the sidecore then shows that.
    fn set_trapped(&self, trapped: bool) {
        if let Err(error) = self.window.show((!trapped).then_some(VTD)) {
            self.stop.throw(Stop::Host(error.to_string()));
        }
    }
}
