//! Xen for a guest on KVM: the hypervisor's side of its hypercalls, its event channels, its grants and its store.
//!
//! The guest is domain 1 and everything that serves it is domain 0, in this process. KVM sends what guests send most: events to back
//! ends, as eventfds, and those between vCPUs; and it keeps time. The rest comes here as hypercalls.

mod arguments;
mod cpuid;
mod device;
mod disk;
mod events;
mod frames;
mod host;
mod hypercall;
mod net;
mod peer;
mod platform;
mod spec;
mod store;
mod vcpus;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use grant_table::event::{EventChannels, EventConfig};
use grant_table::frame::Frame;
use grant_table::hypervisor::{DomainConfig, Hypervisor};
use grant_table::spec::event::{TWO_LEVEL_PORTS, shared_info, vcpu_info};
use grant_table::spec::{DomId, Errno, PAGE_SIZE};
use grant_table::table::Version;
use kvm_bindings::CpuId;
use virtio_devices::block::{BlockBackend, FileDisk};

use super::board::Motherboard;
use super::disk::Disk;
use super::layout::XEN_STORE;
use super::stop::StopSwitch;
use super::{MachineError, Memory};
use crate::kvm::{KvmError, Vcpu, Vm, Window, XenVcpu, ram_frame};
use device::{BackEnd, Device};
use disk::BlockDevice;
use events::Upcalls;
use frames::Ram;
use host::Host;
use net::NetDevice;
pub use net::Vif;
use peer::Peer;
use store::Store;
use vcpus::Vcpus;

/// The guest.
const GUEST: DomId = DomId(1);
/// Everything that serves it.
const HOST: DomId = DomId(0);
/// The guest of another VMM, to which this one is the same.
const PEER: DomId = DomId(2);

/// What the guest has of Xen besides the hypervisor.
#[derive(Default)]
pub struct XenDevices {
    /// Block devices, `xvda` the first.
    pub disks: Vec<Disk>,
    /// Network devices.
    pub vifs: Vec<Vif>,
    /// Where the VMM of a guest is met with which this one shares pages and event channels: domain 2 to it.
    pub peer: Option<PathBuf>,
}

/// Why Xen could not be had.
#[derive(Debug, thiserror::Error)]
pub enum XenError {
    /// Grants name the guest's own addresses, and no IOMMU translates them.
    #[error("Xen's devices reach all of the guest's memory: --xen and --iommu exclude each other")]
    Iommu,
    /// A domain could not be made.
    #[error("a domain of Xen's: {0}")]
    Domain(#[from] Errno),
    /// A domain could not be made.
    #[error(transparent)]
    Grants(#[from] grant_table::hypervisor::DomainError),
    /// The store has no thread, or no way to be told.
    #[error("xenstore: {0}")]
    Store(#[from] io::Error),
    /// The other VMM cannot be met.
    #[error("cannot meet another VMM at {}: {source}", path.display())]
    Peer {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A request that sets the store up.
    #[error("xenstore: {0} could not be written")]
    Node(String),
}

/// The pages of the hypervisor's that the guest sees.
#[derive(Debug, Default)]
struct Shown {
    /// The number of the shared info page.
    shared_info: Option<u64>,
    /// Of each page of the grant table: where, if anywhere, and by what.
    grants: HashMap<u64, (Option<u64>, Window)>,
}

/// Xen, as one guest sees it.
pub(crate) struct Xen {
    vm: Vm,
    memory: Memory,
    stop: Arc<StopSwitch>,
    vcpus: Vcpus,
    upcalls: Upcalls,
    grants: Arc<Hypervisor>,
    events: Arc<EventChannels>,
    shown: Mutex<Shown>,
    store: Store,
    peer: Option<Peer>,
    images: Vec<Arc<FileDisk>>,
}

impl Xen {
    /// Makes `vm` one whose `vcpus` vCPUs see Xen, with its platform device on `board`.
    pub(super) fn new(
        vm: &Vm,
        board: &Motherboard,
        vcpus: u8,
        devices: XenDevices,
    ) -> Result<Arc<Self>, MachineError> {
        vm.enable_xen(spec::HYPERCALL_MSR)?;
        platform::attach(board)?;
        let memory = vm.memory().clone();
        let grants = Arc::new(Hypervisor::new());
        let config = DomainConfig {
            vcpus: vcpus.into(),
            max_version: Version::V1,
            ..DomainConfig::default()
        };
        grants
            .create(GUEST, config, Ram(memory.clone()))
            .map_err(XenError::from)?;
        let events = Arc::new(EventChannels::new());
        let XenDevices { disks, vifs, peer } = devices;
        let disks: Vec<_> = disks
            .into_iter()
            .zip(0..)
            .map(|(disk, index)| BlockDevice::new(disk, index))
            .collect();
        let images = disks.iter().map(BlockDevice::image).collect();
        let disks = disks
            .into_iter()
            .map(|disk| (disk.handle(), Box::new(disk) as Box<dyn BackEnd>));
        let vifs = vifs.into_iter().zip(0..).map(|(vif, index)| {
            (
                index,
                Box::new(NetDevice::new(vif, index)) as Box<dyn BackEnd>,
            )
        });
        let devices: Vec<_> = disks
            .chain(vifs)
            .zip(0..)
            .map(|((handle, back_end), number)| Device::new(number, handle, back_end))
            .collect();
        let host = Host::new(vm.clone(), events.clone(), grants.clone(), devices.len())?;
        let peer = peer
            .map(|path| Peer::new(host.clone(), &path))
            .transpose()?;
        let page = Frame::allocate();
        vm.frame_window(page.clone()).show(Some(XEN_STORE))?;
        Ok(Arc::new(Self {
            vm: vm.clone(),
            memory,
            stop: board.stop.clone(),
            vcpus: Vcpus::new(vcpus),
            upcalls: Upcalls::new(vm.clone(), vcpus),
            grants,
            store: Store::new(page, host, devices)?,
            peer,
            images,
            events,
            shown: Mutex::default(),
        }))
    }

    /// Makes `vcpu` the one of number `index`. Returns what it says about itself, instead of `leaves`.
    pub(super) fn prepare(
        &self,
        index: u8,
        vcpu: &Vcpu,
        leaves: &CpuId,
    ) -> Result<CpuId, KvmError> {
        vcpu.set_xen(XenVcpu::Number(index))?;
        cpuid::for_guest(leaves, GUEST, index).ok_or_else(|| KvmError::Call {
            what: "make room for Xen's CPUID leaves",
            source: io::ErrorKind::StorageFull.into(),
        })
    }

    /// Ends what serves the guest, when it has stopped, and brings what that wrote to stable storage.
    pub(super) fn stop(&self) -> io::Result<()> {
        self.store.stop();
        if let Some(peer) = &self.peer {
            peer.stop();
        }
        self.images.iter().try_for_each(|image| image.flush())
    }

    /// The calling thread runs vCPU `index` from now on.
    pub(crate) fn begin(&self, index: u8) {
        self.vcpus.begin(index);
    }

    /// Does what has to be done on a vCPU's thread before it enters the guest.
    pub(crate) fn before_entry(&self, index: u8, vcpu: &Vcpu) {
        self.vcpus.apply(index, vcpu);
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest chooses its page `number` for the shared info: the first time its event channels begin, and it has one to the store.
    fn place_shared_info(&self, number: u64, on: (u8, &Vcpu)) -> Result<(), Errno> {
        let mut shown = self.shown();
        match shown.shared_info {
            Some(at) if at == number => return Ok(()),
            Some(_) => return Err(Errno::Busy),
            None => {}
        }
        let page = ram_frame(&self.memory, number).ok_or(Errno::Inval)?;
        page.clear();
        let config = EventConfig {
            vcpus: self.vcpus.count(),
            shared_info: page,
            upcall: Box::new(self.upcalls.clone()),
            privileged: false,
            pirqs: Vec::new(),
            max_ports: TWO_LEVEL_PORTS,
        };
        self.vm
            .set_xen_shared_info(number)
            .map_err(|_| Errno::Inval)?;
        self.events.create(GUEST, config)?;
        shown.shared_info = Some(number);
        drop(shown);
        // KVM knows no vCPU's info, though the first have theirs in the page.
        let base = number.saturating_mul(PAGE_SIZE as u64);
        for vcpu in 0..self.vcpus.count().min(shared_info::VCPUS) {
            let address = base.saturating_add((vcpu * vcpu_info::SIZE) as u64);
            self.vcpus
                .set(on, vcpu, XenVcpu::Info(address), &self.stop)?;
        }
        self.store.connect().map_err(|_| Errno::NoMem)
    }

    /// Shows the guest page `index` of its grant table at frame number `number`, and nowhere else any more.
    fn show_grants(&self, index: u64, number: u64) -> Result<(), Errno> {
        let frames = u32::try_from(index)
            .ok()
            .and_then(|last| last.checked_add(1));
        let caller = self.grants.caller(GUEST, 0).ok_or(Errno::Srch)?;
        // Growing is refused beyond the limit.
        let table = frames
            .and_then(|frames| caller.setup_table(DomId::SELF, frames).ok())
            .ok_or(Errno::Inval)?;
        let at = number.checked_mul(PAGE_SIZE as u64).ok_or(Errno::Inval)?;
        let frame = usize::try_from(index)
            .ok()
            .and_then(|index| table.frames().get(index))
            .ok_or(Errno::Inval)?;
        let mut shown = self.shown();
        let (place, window) = shown
            .grants
            .entry(index)
            .or_insert_with(|| (None, self.vm.frame_window(frame.clone())));
        if place.take().is_some() {
            window.show(None).map_err(|_| Errno::Inval)?;
        }
        // KVM refuses what overlaps RAM or another page.
        window.show(Some(at)).map_err(|_| Errno::Inval)?;
        *place = Some(number);
        Ok(())
    }

    /// Hides the page of the grant table that is at frame number `number`.
    fn hide_grants(&self, number: u64) -> Result<(), Errno> {
        let mut shown = self.shown();
        let (at, window) = shown
            .grants
            .values_mut()
            .find(|(at, _)| *at == Some(number))
            .ok_or(Errno::NoEnt)?;
        window.show(None).map_err(|_| Errno::Inval)?;
        *at = None;
        Ok(())
    }
}
