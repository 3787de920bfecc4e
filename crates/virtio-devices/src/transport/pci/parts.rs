use std::sync::Arc;

use pio_mmio_bus::bus::{BusDevice, Doorbell};
use pio_mmio_bus::interrupt::MsiRouter;
use pio_mmio_bus::pci::{
    Bar, BarKind, Capability, ConfigBuilder, ConfigSpace, Decoder, Identity, IntxPin, Msix,
    PortType, RequesterId,
};
use vm_memory::GuestAddressSpace;
use vring::Features;

use super::super::spec::pci::{DEVICE_BASE, SR_IOV, VENDOR};
use super::super::status::{Interrupts, StatusMachine};
use super::capability::capabilities;
use super::interrupt::PciInterrupts;
use super::registers::{BarRegisters, layout};
use super::{BAR, MSIX_BAR, PciError, PciOptions, PciTransport, bar_size};
use crate::device::{DeviceType, VirtioDevice};

/// Hears which requester ID the function has.
pub(super) type Renumbered = Arc<dyn Fn(RequesterId) + Send + Sync>;

/// What a virtio function consists of, before it has a configuration space: for a physical function, to which its owner adds the SR-IOV
/// capability, and for its virtual functions, whose BARs are not in their own configuration space. For all others
/// [`PciTransport::new`] puts it together.
pub struct PciParts<M> {
    kind: DeviceType,
    port: PortType,
    pin: Option<Arc<IntxPin>>,
    registers: Arc<BarRegisters<M>>,
    interrupts: Arc<PciInterrupts>,
    msix: Arc<Msix>,
    renumbered: Option<Renumbered>,
}

impl<M: GuestAddressSpace + Send + Sync + 'static> PciParts<M> {
    /// The parts of a function of `device`, which sees guest memory as `memory`. It raises messages through `router`, or `pin`, which a
    /// virtual function has not, as long as the driver has not enabled MSI-X.
    ///
    /// # Errors
    /// Too many queues, no routes or event descriptors left.
    pub fn new(
        device: Arc<dyn VirtioDevice<M>>,
        memory: M,
        router: &dyn MsiRouter,
        pin: Option<Arc<IntxPin>>,
        options: PciOptions,
    ) -> Result<Self, PciError> {
        let PciOptions {
            port,
            access_platform,
            sr_iov,
        } = options;
        let queues = device.queue_max_sizes().len();
        // One more vector for the configuration.
        let vectors = u16::try_from(queues)
            .ok()
            .and_then(|queues| queues.checked_add(1))
            .ok_or(PciError::Queues(queues))?;
        let msix = Msix::new(vectors, router)?;
        let interrupts = Arc::new(PciInterrupts::new(queues, pin.clone(), Arc::clone(&msix)));
        let mut extra = Features::empty();
        extra.set(Features::ACCESS_PLATFORM, access_platform);
        extra.set(SR_IOV, sr_iov);
        let kind = device.device_type();
        let mut machine = StatusMachine::new(
            device,
            memory,
            extra,
            Arc::clone(&interrupts) as Arc<dyn Interrupts>,
        )?;
        machine.set_bus_master(false);
        Ok(Self {
            kind,
            port,
            pin,
            registers: Arc::new(BarRegisters::new(machine, Arc::clone(&interrupts))),
            interrupts,
            msix,
            renumbered: None,
        })
    }

    /// Has `renumbered` called with the identity that the function's requests carry, whenever that changes: for a view of memory behind
    /// an IOMMU. It runs with the bus locked, see [`PciFunction::set_requester`](pio_mmio_bus::pci::PciFunction::set_requester).
    pub fn on_requester(self, renumbered: impl Fn(RequesterId) + Send + Sync + 'static) -> Self {
        Self {
            renumbered: Some(Arc::new(renumbered)),
            ..self
        }
    }

    /// The PCI device ID (virtio 1.3 §4.1.2), which is also that of virtual functions.
    pub fn device_id(&self) -> u16 {
        DEVICE_BASE.saturating_add(self.kind.0)
    }

    /// The configuration space of a function of its own, or of a physical one.
    pub fn endpoint(&self) -> ConfigBuilder {
        let identity = self.identity(VENDOR, self.device_id());
        let mut builder = ConfigBuilder::endpoint(identity);
        for (index, bar) in self.bars() {
            builder = builder.bar(index, bar);
        }
        if let Some(pin) = &self.pin {
            builder = builder.interrupt(Arc::clone(pin));
        }
        self.with_capabilities(builder)
    }

    /// The configuration space of a virtual function (PCIe 6.0 §9.3.4.1): its physical function says who it is and where its
    /// [`bars`](Self::bars) are.
    pub fn virtual_function(&self) -> ConfigBuilder {
        self.with_capabilities(ConfigBuilder::virtual_function(
            self.identity(0xffff, 0xffff),
        ))
    }

    /// The BARs, by the number of their first register.
    pub fn bars(&self) -> [(usize, Bar); 2] {
        let kind = BarKind::Memory64 {
            prefetchable: false,
        };
        let bar = |index, name: &str, size, device: Arc<dyn BusDevice>| {
            let name = format!("virtio {} {name}", self.kind.0);
            let bar = Bar {
                kind,
                size,
                name,
                device,
            };
            (usize::from(index), bar)
        };
        let size = bar_size(self.registers.kicks().len());
        [
            bar(BAR, "registers", size, Arc::clone(&self.registers) as _),
            bar(
                MSIX_BAR,
                "MSI-X",
                self.msix.size(),
                Arc::clone(&self.msix) as _,
            ),
        ]
    }

    /// The doorbells of the queues, by their offset in the first BAR.
    pub fn doorbells(&self) -> Vec<(u64, Doorbell)> {
        let step = u64::from(layout::NOTIFY_MULTIPLIER);
        let offsets = (0..).map(|index| layout::NOTIFY + step * index);
        // Any width: the address alone says which queue it is.
        let doorbells = self.registers.kicks().iter().map(|kick| Doorbell {
            width: None,
            datamatch: None,
            needs_value: false,
            eventfd: Arc::clone(kick),
        });
        offsets.zip(doorbells).collect()
    }

    /// The transport with the configuration space that was made of the parts, and its doorbells on the bus if it has BARs. The state of
    /// a physical function is restored by its owner: [`PciTransport::restore`] makes no virtual functions.
    ///
    /// # Errors
    /// The bus refuses a doorbell.
    pub fn finish(
        self,
        function: Arc<ConfigSpace>,
        decoder: &Decoder,
    ) -> Result<PciTransport<M>, PciError> {
        if let Some((space, region)) = function.bar_region(usize::from(BAR)) {
            for (offset, doorbell) in self.doorbells() {
                let bus = decoder.bus(space);
                bus.add_doorbell(region, offset, doorbell)?;
            }
        }
        Ok(PciTransport {
            function,
            registers: self.registers,
            interrupts: self.interrupts,
            msix: self.msix,
        })
    }

    fn with_capabilities(&self, builder: ConfigBuilder) -> ConfigBuilder {
        let builder = builder
            .capability(self.msix.capability(MSIX_BAR, 0))
            .capability(Capability::express(self.port));
        capabilities(&self.registers, self.renumbered.clone())
            .into_iter()
            .fold(builder, ConfigBuilder::capability)
    }

    /// Who the function is (virtio 1.3 §4.1.2).
    fn identity(&self, vendor: u16, device: u16) -> Identity {
        Identity {
            vendor,
            device,
            // Not transitional.
            revision: 1,
            class: match self.kind {
                DeviceType::NET => [0x02, 0x00, 0x00],
                DeviceType::BLOCK => [0x01, 0x80, 0x00],
                DeviceType::CONSOLE => [0x07, 0x80, 0x00],
                DeviceType::IOMMU => [0x08, 0x06, 0x00],
                _ => [0xff, 0x00, 0x00],
            },
            subsystem_vendor: VENDOR,
            subsystem: self.device_id(),
        }
    }
}
