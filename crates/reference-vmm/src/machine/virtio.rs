//! Puts virtio devices where the guest finds them.

use std::io;
use std::sync::Arc;

use pio_mmio_bus::interrupt::MsiRouter;
use pio_mmio_bus::pci::{
    InterruptPin, IntxPin, PciFunction, PortType, RequesterId, RootError, RootPort,
};
use sriov_vfio::emulated::{PhysicalError, PhysicalFunction};
use virtio_devices::block::BlockError;
use virtio_devices::console::ConsoleError;
use virtio_devices::net::NetError;
use virtio_devices::transport::{MmioTransport, PciError, PciOptions, PciParts, PciTransport};
use virtio_devices::{DmaView, VirtioDevice, WorkerError};

use super::board::Motherboard;
use super::layout::{VIRTIO_MMIO, VIRTIO_MMIO_SLOT};
use super::sriov::{self, VirtualNic};
use super::{MachineError, Memory};
use crate::acpi::VirtioMmioSlot;
use crate::irq;

/// How the guest finds its virtio devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// As PCI functions.
    #[default]
    Pci,
    /// As PCI functions, each behind a root port of its own: with access control, so that each is an IOMMU group.
    PciPorts,
    /// As registers that the ACPI tables name.
    Mmio,
}

/// Why a virtio device could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// There is no room for another device.
    #[error("no room for the virtio device `{name}`: the machine has {limit} places")]
    NoRoom {
        /// The device.
        name: String,
        /// How many fit.
        limit: usize,
    },
    /// Its thread could not be started.
    #[error("virtio device `{name}`: {source}")]
    Worker {
        /// The device.
        name: String,
        /// What went wrong.
        source: WorkerError,
    },
    /// The block device could not be made.
    #[error("virtio device `{name}`: {source}")]
    Block {
        /// The device.
        name: String,
        /// What went wrong.
        source: BlockError,
    },
    /// The network device could not be made.
    #[error("virtio device `{name}`: {source}")]
    Net {
        /// The device.
        name: String,
        /// What went wrong.
        source: NetError,
    },
    /// The console could not be made.
    #[error("virtio console: {0}")]
    Console(#[from] ConsoleError),
    /// There is no source of entropy.
    #[error("/dev/urandom: {0}")]
    Entropy(#[source] io::Error),
    /// Its registers could not be made.
    #[error("virtio device `{name}`: {source}")]
    Mmio {
        /// The device.
        name: String,
        /// What went wrong.
        source: io::Error,
    },
    /// Its PCI function could not be made.
    #[error("virtio device `{name}`: {source}")]
    Pci {
        /// The device.
        name: String,
        /// What went wrong.
        source: Box<PciError>,
    },
    /// Virtual functions would be where other devices are.
    #[error(
        "virtio device `{name}`: virtual functions have to be behind a root port (`--transport pci-ports`)"
    )]
    NoPort {
        /// The device.
        name: String,
    },
    /// It could not be made a physical function.
    #[error("virtio device `{name}`: {source}")]
    Physical {
        /// The device.
        name: String,
        /// What went wrong.
        source: PhysicalError,
    },
}

/// Devices on one PCI bus.
const PCI_DEVICES: u8 = 32;

/// A device that the guest can reach.
enum Attached<A> {
    Pci(PciTransport<A>),
    Physical(PciTransport<A>, Arc<PhysicalFunction>),
    Mmio(Arc<MmioTransport<A>>),
}

/// How devices see the guest's memory.
#[derive(Clone)]
pub(super) struct Views<A> {
    /// Makes the view of one function.
    pub(super) view: Arc<dyn Fn(RequesterId) -> A + Send + Sync>,
    /// Tells a view that its function's requests carry another identity.
    pub(super) renumber: fn(&A, RequesterId),
    /// Whether an IOMMU stands before it.
    pub(super) translated: bool,
}

impl Views<Memory> {
    /// All of `memory`, without an IOMMU.
    pub(super) fn plain(memory: Memory) -> Self {
        Self {
            view: Arc::new(move |_| memory.clone()),
            renumber: |_, _| {},
            translated: false,
        }
    }
}

impl<A: DmaView> Views<A> {
    /// The parts of a virtio function that sees memory by whatever identity its bus gives it; a virtual function has no pin.
    pub(super) fn parts(
        &self,
        device: Arc<dyn VirtioDevice<A>>,
        router: &dyn MsiRouter,
        pin: Option<Arc<IntxPin>>,
        port: PortType,
        sr_iov: bool,
    ) -> Result<PciParts<A>, PciError> {
        let options = PciOptions {
            port,
            access_platform: self.translated,
            sr_iov,
        };
        let view = (self.view)(RequesterId::default());
        let parts = PciParts::new(device, view.clone(), router, pin, options)?;
        let renumber = self.renumber;
        Ok(parts.on_requester(move |requester| renumber(&view, requester)))
    }
}

/// A place for a PCI function.
enum Slot {
    /// This device of bus 0.
    Root(u8),
    /// Behind a port.
    Port(Arc<RootPort>),
}

impl Slot {
    fn insert(&self, function: Arc<dyn PciFunction>, board: &Motherboard) -> Result<(), RootError> {
        let (bus, number) = match self {
            Self::Root(number) => (board.root.bus(), *number),
            Self::Port(port) => (port.bus(), 0),
        };
        Ok(bus.insert(RequesterId::devfn_of(number, 0), function)?)
    }
}

fn pci_error(name: &str) -> impl FnOnce(PciError) -> AttachError {
    move |source| AttachError::Pci {
        name: name.to_owned(),
        source: Box::new(source),
    }
}

/// The virtio devices of a machine, which see memory as `A`.
pub(super) struct VirtioDevices<A> {
    views: Views<A>,
    transport: Transport,
    /// Device number of the first on PCI bus 0.
    first: u8,
    attached: Vec<Attached<A>>,
    /// What the ACPI tables have to name.
    pub(super) slots: Vec<VirtioMmioSlot>,
}

impl<A: DmaView> VirtioDevices<A> {
    /// No devices yet. On PCI bus 0, device numbers from `first` on will be theirs.
    pub(super) fn new(views: Views<A>, transport: Transport, first: u8) -> Self {
        Self {
            views,
            transport,
            first,
            attached: Vec::new(),
            slots: Vec::new(),
        }
    }

    /// Puts `device` behind a transport and on its bus.
    pub(super) fn attach(
        &mut self,
        name: &str,
        device: Arc<dyn VirtioDevice<A>>,
        board: &Motherboard,
    ) -> Result<(), MachineError> {
        let attached = match self.transport {
            Transport::Pci | Transport::PciPorts => {
                let slot = self.slot(name, board)?;
                let parts = self.parts(name, device, &slot, false, board)?;
                let decoder = board.root.decoder();
                let transport = parts
                    .endpoint()
                    .build(decoder)
                    .map_err(PciError::from)
                    .and_then(|function| parts.finish(function, decoder))
                    .map_err(pci_error(name))?;
                slot.insert(transport.function().clone(), board)?;
                Attached::Pci(transport)
            }
            Transport::Mmio => Attached::Mmio(self.attach_mmio(name, device, board)?),
        };
        self.attached.push(attached);
        Ok(())
    }

    /// As [`attach`](Self::attach), with virtual functions of which `nics` are the other ends.
    pub(super) fn attach_physical(
        &mut self,
        name: &str,
        device: Arc<dyn VirtioDevice<A>>,
        nics: Vec<VirtualNic>,
        board: &Motherboard,
    ) -> Result<(), MachineError> {
        if self.transport != Transport::PciPorts {
            let name = name.to_owned();
            return Err(AttachError::NoPort { name }.into());
        }
        let slot = self.slot(name, board)?;
        let parts = self.parts(name, device, &slot, true, board)?;
        let physical = sriov::physical_function(name, &parts, nics, self.views.clone(), board)
            .map_err(|source| AttachError::Physical {
                name: name.to_owned(),
                source,
            })?;
        let transport = parts
            .finish(physical.config().clone(), board.root.decoder())
            .map_err(pci_error(name))?;
        slot.insert(physical.clone(), board)?;
        self.attached.push(Attached::Physical(transport, physical));
        Ok(())
    }

    /// The next place on bus 0, or behind a port that is there.
    fn slot(&self, name: &str, board: &Motherboard) -> Result<Slot, MachineError> {
        let number = u8::try_from(self.attached.len())
            .ok()
            .and_then(|attached| self.first.checked_add(attached))
            .filter(|number| *number < PCI_DEVICES)
            .ok_or_else(|| AttachError::NoRoom {
                name: name.to_owned(),
                limit: usize::from(PCI_DEVICES - 1),
            })?;
        Ok(match self.transport {
            Transport::PciPorts => Slot::Port(RootPort::new(&board.root, number)?),
            _ => Slot::Root(number),
        })
    }

    fn parts(
        &self,
        name: &str,
        device: Arc<dyn VirtioDevice<A>>,
        slot: &Slot,
        sr_iov: bool,
        board: &Motherboard,
    ) -> Result<PciParts<A>, AttachError> {
        let (pin, port) = match slot {
            Slot::Root(number) => (
                board.root.intx().pin(*number, InterruptPin::A),
                PortType::IntegratedEndpoint,
            ),
            Slot::Port(port) => (port.intx().pin(0, InterruptPin::A), PortType::Endpoint),
        };
        let router = board.controller.router();
        self.views
            .parts(device, router, Some(pin), port, sr_iov)
            .map_err(pci_error(name))
    }

    fn attach_mmio(
        &mut self,
        name: &str,
        device: Arc<dyn VirtioDevice<A>>,
        board: &Motherboard,
    ) -> Result<Arc<MmioTransport<A>>, MachineError> {
        let slot = (VIRTIO_MMIO)
            .step_by(usize::try_from(VIRTIO_MMIO_SLOT).unwrap_or(usize::MAX))
            .zip(irq::FREE_GSIS)
            .map(|(address, gsi)| VirtioMmioSlot { address, gsi })
            .nth(self.slots.len())
            .ok_or_else(|| AttachError::NoRoom {
                name: name.to_owned(),
                limit: irq::FREE_GSIS.len(),
            })?;
        let line = board.controller.line(slot.gsi)?;
        let memory = (self.views.view)(RequesterId::default());
        let transport = MmioTransport::new(device, memory, line)
            .map(Arc::new)
            .map_err(|source| AttachError::Mmio {
                name: name.to_owned(),
                source,
            })?;
        transport.place(&board.mmio, slot.address, &format!("virtio {name}"))?;
        self.slots.push(slot);
        Ok(transport)
    }

    /// Stops all queues: on return no I/O is in flight.
    pub(super) fn pause(&self) {
        for attached in &self.attached {
            match attached {
                Attached::Pci(transport) => transport.pause(),
                Attached::Physical(transport, physical) => {
                    transport.pause();
                    for (_, function) in physical.virtual_functions() {
                        function.reset();
                    }
                }
                Attached::Mmio(transport) => transport.pause(),
            }
        }
    }
}
