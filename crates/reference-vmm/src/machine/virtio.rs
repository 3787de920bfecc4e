//! Puts virtio devices where the guest finds them.

use std::io;
use std::sync::Arc;

use pio_mmio_bus::pci::{InterruptPin, PortType, RequesterId, RootError, RootPort};
use virtio_devices::block::BlockError;
use virtio_devices::console::ConsoleError;
use virtio_devices::net::NetError;
use virtio_devices::transport::{MmioTransport, PciError, PciOptions, PciTransport};
use virtio_devices::{DmaView, VirtioDevice, WorkerError};

use super::board::Motherboard;
use super::layout::{VIRTIO_MMIO, VIRTIO_MMIO_SLOT};
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
}

/// Devices on one PCI bus.
const PCI_DEVICES: u8 = 32;

/// A device that the guest can reach.
enum Attached<A> {
    Pci(PciTransport<A>),
    Mmio(Arc<MmioTransport<A>>),
}

/// How devices see the guest's memory.
pub(super) struct Views<A> {
    /// Makes the view of one function.
    pub(super) view: Box<dyn Fn(RequesterId) -> A + Send>,
    /// Whether an IOMMU stands before it.
    pub(super) translated: bool,
}

impl Views<Memory> {
    /// All of `memory`, without an IOMMU.
    pub(super) fn plain(memory: Memory) -> Self {
        Self {
            view: Box::new(move |_| memory.clone()),
            translated: false,
        }
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
                Attached::Pci(self.attach_pci(name, device, board)?)
            }
            Transport::Mmio => Attached::Mmio(self.attach_mmio(name, device, board)?),
        };
        self.attached.push(attached);
        Ok(())
    }

    /// On bus 0, or behind a port that is there.
    fn attach_pci(
        &mut self,
        name: &str,
        device: Arc<dyn VirtioDevice<A>>,
        board: &Motherboard,
    ) -> Result<PciTransport<A>, MachineError> {
        let number = u8::try_from(self.attached.len())
            .ok()
            .and_then(|attached| self.first.checked_add(attached))
            .filter(|number| *number < PCI_DEVICES)
            .ok_or_else(|| AttachError::NoRoom {
                name: name.to_owned(),
                limit: usize::from(PCI_DEVICES - 1),
            })?;
        let port = (self.transport == Transport::PciPorts)
            .then(|| RootPort::new(&board.root, number))
            .transpose()?;
        let (bus, lines, slot, kind) = match &port {
            Some(port) => (port.bus(), port.intx(), 0, PortType::Endpoint),
            None => {
                let root = &board.root;
                (
                    root.bus(),
                    root.intx(),
                    number,
                    PortType::IntegratedEndpoint,
                )
            }
        };
        let requester = RequesterId::new(0, RequesterId::devfn_of(number, 0));
        let transport = PciTransport::new(
            device,
            (self.views.view)(requester),
            board.controller.router(),
            lines.pin(slot, InterruptPin::A),
            board.root.decoder(),
            PciOptions {
                port: kind,
                access_platform: self.views.translated,
            },
        )
        .map_err(|source| AttachError::Pci {
            name: name.to_owned(),
            source: Box::new(source),
        })?;
        bus.insert(RequesterId::devfn_of(slot, 0), transport.function().clone())
            .map_err(RootError::from)?;
        Ok(transport)
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
                Attached::Mmio(transport) => transport.pause(),
            }
        }
    }
}
