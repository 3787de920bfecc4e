//! The devices of a machine, made from its description.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use virtio_devices::block::{Block, BlockBackend, BlockOptions, FileDisk};
use virtio_devices::console::{Console, Port};
use virtio_devices::net::{MacAddress, Net, Tap};
use virtio_devices::rng::Rng;
use virtio_devices::{DmaView, Worker};

use super::MachineError;
use super::board::Motherboard;
use super::disk::Disk;
use super::emulated::Emulated;
use super::sriov::VirtualNic;
use super::vfio::HostFunction;
use super::vhost_user::VhostUser;
use super::virtio::{AttachError, Transport, Views, VirtioDevices};
use super::vpio::ModelledFunction;
use crate::acpi::VirtioMmioSlot;

/// A network interface.
#[derive(Clone, Debug)]
pub struct Nic {
    /// The host's side.
    pub tap: Tap,
    /// The guest's address.
    pub mac: MacAddress,
    /// Its virtual functions, at most [`MAX_VIRTUAL_NICS`](super::MAX_VIRTUAL_NICS), which exist when the guest enables them. If there
    /// are any, the card is behind a root port.
    pub virtual_functions: Vec<VirtualNic>,
}

/// What devices a machine has, besides a source of entropy.
#[derive(Default)]
pub struct Peripherals {
    /// Block devices.
    pub disks: Vec<Disk>,
    /// Network devices.
    pub nics: Vec<Nic>,
    /// Devices that other processes serve. They see the guest's memory.
    pub vhost_user: Vec<VhostUser>,
    /// The port of a console.
    pub console: Option<Port>,
    /// Devices that are not virtio's.
    pub emulated: Vec<Emulated>,
    /// Functions of this host that the guest drives itself, bound to `vfio-pci`.
    pub assigned: Vec<HostFunction>,
    /// The same, behind models.
    pub modelled: Vec<ModelledFunction>,
    /// Sockets at which arbiters share such functions with other guests (`vpio serve`). They map the guest's memory.
    pub shared: Vec<PathBuf>,
}

impl Peripherals {
    /// How many virtio devices they are, with the source of entropy.
    pub(super) fn devices(&self) -> u8 {
        let Self {
            disks,
            nics,
            vhost_user,
            console,
            emulated: _,
            assigned: _,
            modelled: _,
            shared: _,
        } = self;
        let console = usize::from(console.is_some());
        let count = disks.len() + nics.len() + vhost_user.len() + console + 1;
        u8::try_from(count).unwrap_or(u8::MAX)
    }
}

/// What has to be brought to rest when the guest has stopped, whatever the view of memory.
pub(super) trait Stoppable: Send {
    /// Ends I/O and brings what the guest wrote to stable storage.
    fn stop(&self) -> io::Result<()>;
}

/// The devices, which see memory as `A`.
pub(super) struct Devices<A: DmaView> {
    virtio: VirtioDevices<A>,
    disks: Vec<Arc<Block<A, FileDisk>>>,
}

impl<A: DmaView> Devices<A> {
    /// Attaches `peripherals`; also returns which of them the ACPI tables have to name.
    pub(super) fn attach(
        peripherals: Peripherals,
        views: Views<A>,
        transport: Transport,
        board: &Motherboard,
    ) -> Result<(Box<dyn Stoppable>, Vec<VirtioMmioSlot>), MachineError> {
        let Peripherals {
            disks,
            nics,
            vhost_user,
            console,
            emulated,
            assigned: _,
            modelled: _,
            shared: _,
        } = peripherals;
        for (device, index) in emulated.into_iter().zip(0u8..) {
            device.attach(index, &views, board)?;
        }
        let mut virtio = VirtioDevices::new(views, transport, 1);
        let mut blocks = Vec::new();
        for (disk, number) in disks.into_iter().zip(0u32..) {
            let name = format!("blk{number}");
            let options = BlockOptions {
                id: disk.id,
                ..BlockOptions::default()
            };
            let device = Block::new(disk.image, vec![worker(&name)?], options)
                .map(Arc::new)
                .map_err(|source| AttachError::Block {
                    name: name.clone(),
                    source,
                })?;
            blocks.push(device.clone());
            virtio.attach(&name, device, board)?;
        }
        for (nic, number) in nics.into_iter().zip(0u32..) {
            let name = format!("net{number}");
            let device = Net::new(nic.tap, nic.mac, vec![worker(&name)?])
                .map(Arc::new)
                .map_err(|source| AttachError::Net {
                    name: name.clone(),
                    source,
                })?;
            if nic.virtual_functions.is_empty() {
                virtio.attach(&name, device, board)?;
            } else {
                virtio.attach_physical(&name, device, nic.virtual_functions, board)?;
            }
        }
        for (backend, number) in vhost_user.into_iter().zip(0u32..) {
            let name = format!("vhost-user{number}");
            let device = backend.device(worker(&name)?)?;
            virtio.attach(&name, Arc::new(device), board)?;
        }
        // What is slow anyway shares a thread.
        let slow = worker("slow")?;
        if let Some(port) = console {
            let device = Console::new(vec![port], slow.clone()).map_err(AttachError::Console)?;
            virtio.attach("console", Arc::new(device), board)?;
        }
        let entropy = File::open("/dev/urandom").map_err(AttachError::Entropy)?;
        virtio.attach("rng", Arc::new(Rng::new(entropy, slow)), board)?;
        let slots = std::mem::take(&mut virtio.slots);
        let devices = Self {
            virtio,
            disks: blocks,
        };
        Ok((Box::new(devices), slots))
    }
}

impl<A: DmaView> Stoppable for Devices<A> {
    fn stop(&self) -> io::Result<()> {
        self.virtio.pause();
        for disk in &self.disks {
            disk.backend().flush()?;
        }
        Ok(())
    }
}

/// A thread for a virtio device.
pub(super) fn worker(name: &str) -> Result<Worker, AttachError> {
    Worker::spawn(name).map_err(|source| AttachError::Worker {
        name: name.to_owned(),
        source,
    })
}
