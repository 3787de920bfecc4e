//! Functions of the host that VFIO lets the guest drive.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use iommu_emul::shadow::Shadow;
use kvm_bindings::{kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO};
use kvm_ioctls::DeviceFd;
use pio_mmio_bus::pci::{RequesterId, RootError};
use sriov_vfio::sysfs::{PciAddress, Sysfs, SysfsError};
use sriov_vfio::vfio::iommu::VfioIommu;
use sriov_vfio::vfio::kernel::Groups;
use sriov_vfio::vfio::{
    AssignError, AssignedFunction, DmaError, GuestWindow, GuestWindows, Notice, OpenError, Policy,
    VfToken, VfioDevice, VfioHost, VfioSpace, map_guest_memory, reset_functions,
};
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::board::Motherboard;
use super::iommu::Translation;
use super::stop::{Stop, StopSwitch};
use super::vpio::{Behind, ModelledFunction, ModelledUse, VpioError};
use super::watch::{Action, Watch};
use super::{MachineError, Memory};
use crate::irq::ResampledPin;
use crate::kvm::{KvmError, Vm, Window};

/// Device number of the first of them on bus 0; the others come before it.
const FIRST: u8 = 24;

/// A function of this host that the guest drives itself, bound to `vfio-pci`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFunction {
    /// Where the host has it.
    pub address: PciAddress,
    /// The VF token of its physical function, if that is bound to `vfio-pci` too, or the one that it gets if it is physical itself.
    pub token: Option<VfToken>,
}

/// Why a function of the host could not be given to the guest.
#[derive(Debug, thiserror::Error)]
pub enum VfioError {
    /// Its DMA would pass by the IOMMU.
    #[error("an assigned function can be put behind `--iommu vtd,caching-mode`, and no other")]
    Iommu,
    /// The guest's memory was not mapped for it, as it is while the IOMMU is off.
    #[error("{0}: the guest's memory cannot be pinned for it")]
    Memory(PciAddress),
    /// Behind the guest's IOMMU, and behind a model, a function has an address space of its own, and a group has one.
    #[error("{0} and {1} are in one IOMMU group: they cannot have address spaces of their own")]
    Group(PciAddress, PciAddress),
    /// It was named before.
    #[error("{0}: is assigned twice")]
    Twice(PciAddress),
    /// VFIO does not give it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Sysfs does not say what it is.
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    /// The guest's memory was not mapped for it.
    #[error("the guest's memory cannot be pinned for assigned functions: {0}")]
    Dma(#[from] DmaError),
    /// It cannot be shown to a guest.
    #[error("{function}: {source}")]
    Assign {
        /// The function.
        function: PciAddress,
        /// Why.
        source: AssignError,
    },
    /// Its interrupt pin cannot be connected.
    #[error("{function}: cannot connect its interrupt pin: {source}")]
    InterruptPin {
        /// The function.
        function: PciAddress,
        /// Why.
        source: io::Error,
    },
    /// Its BARs cannot be mapped.
    #[error("{function}: cannot map a BAR: {source}")]
    Map {
        /// The function.
        function: PciAddress,
        /// Why.
        source: io::Error,
    },
}

/// The functions that the guest has.
pub(super) struct Assigned {
    functions: Vec<(PciAddress, Arc<AssignedFunction>)>,
    /// Where their interrupt pins lead.
    pins: Vec<ResampledPin>,
    /// What the guest maps for each, if they are behind an IOMMU.
    shadows: Vec<Arc<Shadow<Memory, VfioIommu>>>,
    /// Those that are behind models.
    behind: Vec<Behind>,
    /// Stops the machine that cannot go on with them.
    _watch: Option<Watch>,
}

impl Assigned {
    /// Takes the functions from the host, lets them reach the guest's memory, or what `translation` maps of it, and puts them on bus 0:
    /// those in `plain`, those that are behind models, and those that arbiters share at sockets.
    pub(super) fn attach(
        (plain, modelled, shared): (&[HostFunction], &[ModelledFunction], &[PathBuf]),
        vm: &Vm,
        board: &Motherboard,
        translation: Option<&Translation>,
    ) -> Result<Self, MachineError> {
        let mut assigned = Self {
            functions: Vec::new(),
            pins: Vec::new(),
            shadows: Vec::new(),
            behind: Vec::new(),
            _watch: None,
        };
        let mut notices = Vec::new();
        for (index, socket) in shared.iter().enumerate() {
            if translation.is_some() {
                return Err(VpioError::SharedIommu(socket.clone()).into());
            }
            let behind = Behind::join(socket, vm.memory(), &board.stop)?;
            let (address, index) = (behind.address(), plain.len() + modelled.len() + index);
            let function = show(behind.device(), None, address, vm, board)?;
            notices.extend(assigned.put(function, index, address, board)?);
            assigned.behind.push(behind);
        }
        if plain.is_empty() && modelled.is_empty() {
            assigned.watch(notices)?;
            return Ok(assigned);
        }
        let host = Groups::new(Sysfs::default(), Some(kvm_device(vm)?));
        let space = || host.space().map_err(VfioError::from);
        let together = space()?;
        let unmodelled = plain.iter().map(|function| (*function, None));
        let modelled = modelled.iter().map(|function| {
            let address = function.address;
            let token = None;
            (HostFunction { address, token }, Some(function))
        });
        let all: Vec<_> = unmodelled.chain(modelled).collect();
        let own = |model: Option<_>| translation.is_some() || model.is_some();
        let groups = all.iter();
        check_groups(groups.map(|&(function, model)| (function.address, own(model))))?;
        for (index, &(host, model)) in all.iter().enumerate() {
            let address = host.address;
            let mut before = all.iter().take(index);
            if before.any(|(other, _)| other.address == address) {
                return Err(VfioError::Twice(address).into());
            }
            let devfn = RequesterId::devfn_of(number_of(index), 0);
            let function = match (translation, model) {
                (None, None) => taken(&together, host, vm, board)?,
                (None, Some(model)) => {
                    // An address space of its own: no other function reaches the copies of its descriptors.
                    let own = space()?;
                    let device = open(&own, host)?;
                    let behind = Behind::new(model, device, &*own, vm.memory(), &board.stop)?;
                    let function = show(behind.device(), identity(address)?, address, vm, board)?;
                    assigned.behind.push(behind);
                    function
                }
                (Some(_), Some(_)) => return Err(VpioError::Iommu(address).into()),
                (Some(Translation::Vtd(vtd)), None) => {
                    // An address space of its own, as the guest may map something else for each.
                    let own = space()?;
                    let function = taken(&own, host, vm, board)?;
                    let iommu = VfioIommu::new(own, vm.memory().clone());
                    let shadow = vtd.shadow(RequesterId::new(0, devfn), iommu);
                    if shadow.counts().refused != 0 {
                        return Err(VfioError::Memory(address).into());
                    }
                    assigned.shadows.push(shadow);
                    function
                }
                (Some(Translation::Virtio(_)), None) => return Err(VfioError::Iommu.into()),
            };
            notices.extend(assigned.put(function, index, address, board)?);
        }
        if translation.is_none() && !plain.is_empty() {
            // VFIO has an address space once it has a function.
            map_guest_memory(&*together, vm.memory()).map_err(VfioError::from)?;
        }
        assigned.watch(notices)?;
        Ok(assigned)
    }

    /// Watches, if there is anything to watch.
    fn watch(&mut self, notices: Vec<Action>) -> Result<(), MachineError> {
        if !notices.is_empty() {
            self._watch = Some(Watch::spawn("vfio", notices).map_err(MachineError::Host)?);
        }
        Ok(())
    }

    /// Puts a function on bus 0, the `index`th of all. What is to be watched.
    fn put(
        &mut self,
        function: Arc<AssignedFunction>,
        index: usize,
        address: PciAddress,
        board: &Motherboard,
    ) -> Result<Vec<Action>, MachineError> {
        let number = number_of(index);
        let (bus, devfn) = (board.root.bus(), RequesterId::devfn_of(number, 0));
        bus.insert(devfn, function.clone())
            .map_err(RootError::from)?;
        self.pins
            .extend(connect_pin(address, number, &function, board)?);
        let notices = connect_notices(address, &function, &board.stop)?;
        self.functions.push((address, function));
        Ok(notices)
    }

    /// Resets the functions: on return no DMA is in flight.
    pub(super) fn stop(&self) {
        reset_functions(&self.functions);
    }

    /// What was done with those that are behind models.
    pub(super) fn used(&self) -> Vec<ModelledUse> {
        self.behind.iter().map(Behind::used).collect()
    }
}

/// Device number of the `index`th of all on bus 0.
fn number_of(index: usize) -> u8 {
    FIRST.saturating_sub(u8::try_from(index).unwrap_or(u8::MAX))
}

/// Whether each of the functions that have an address space of their own is in a group of its own.
fn check_groups(functions: impl Iterator<Item = (PciAddress, bool)>) -> Result<(), VfioError> {
    let sysfs = Sysfs::default();
    let mut groups = BTreeMap::new();
    for (address, own) in functions {
        // That there is no group is said when it is opened.
        let Some(group) = sysfs.function(address)?.group else {
            continue;
        };
        match groups.insert(group, (address, own)) {
            Some((other, others)) if other != address && (own || others) => {
                return Err(VfioError::Group(other, address));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Takes a function from the host.
fn open(space: &Arc<dyn VfioSpace>, host: HostFunction) -> Result<Arc<dyn VfioDevice>, VfioError> {
    Ok(Arc::clone(space).open(host.address, host.token)?)
}

/// Takes a function from the host and shows its BARs.
fn taken(
    space: &Arc<dyn VfioSpace>,
    host: HostFunction,
    vm: &Vm,
    board: &Motherboard,
) -> Result<Arc<AssignedFunction>, VfioError> {
    let device = open(space, host)?;
    show(device, identity(host.address)?, host.address, vm, board)
}

/// What the host takes a function for: a virtual one does not say it itself.
fn identity(address: PciAddress) -> Result<Option<(u16, u16)>, VfioError> {
    let known = Sysfs::default().function(address)?;
    Ok(Some((known.vendor, known.device)))
}

/// Makes a function of `device`, which a host has at `address`, and shows its BARs.
fn show(
    device: Arc<dyn VfioDevice>,
    identity: Option<(u16, u16)>,
    address: PciAddress,
    vm: &Vm,
    board: &Motherboard,
) -> Result<Arc<AssignedFunction>, VfioError> {
    let policy = Policy {
        identity,
        intx: true,
        ..Policy::default()
    };
    let router = board.controller.router();
    let function =
        AssignedFunction::new(device, policy, board.root.decoder(), router).map_err(|source| {
            VfioError::Assign {
                function: address,
                source,
            }
        })?;
    function
        .show_bars(&Slots(vm.clone()))
        .map_err(|source| VfioError::Map {
            function: address,
            source,
        })?;
    Ok(function)
}

/// Connects the interrupt pin of the function that is device `number` of the guest's bus 0, if it has one.
fn connect_pin(
    address: PciAddress,
    number: u8,
    function: &AssignedFunction,
    board: &Motherboard,
) -> Result<Option<ResampledPin>, MachineError> {
    let Some(pin) = function.interrupt_pin() else {
        return Ok(None);
    };
    let lines = board.root.intx();
    let pin = board.controller.resampled_pin(lines, number, pin)?;
    function
        .connect_intx(pin.trigger(), pin.resample())
        .map_err(|source| VfioError::InterruptPin {
            function: address,
            source,
        })?;
    Ok(Some(pin))
}

/// What stops the machine: an error of the device, after which the guest must not go on with it, and the host that asks for it back,
/// and waits until this process has closed it.
fn connect_notices(
    address: PciAddress,
    function: &AssignedFunction,
    stop: &Arc<StopSwitch>,
) -> Result<Vec<Action>, MachineError> {
    let mut actions: Vec<Action> = Vec::new();
    for (notice, why) in [
        (Notice::Error, "had an uncorrectable error"),
        (Notice::Request, "is asked for by the host"),
    ] {
        let event = EventFd::new(EFD_NONBLOCK)?;
        if function.connect_notice(notice, &event)? {
            let stop = Arc::clone(stop);
            let reason = Stop::Device(format!("{address} {why}"));
            actions.push((event, Box::new(move || stop.throw(reason.clone()))));
        }
    }
    Ok(actions)
}

/// KVM's view of VFIO: without, KVM does not know of devices that do not snoop caches.
fn kvm_device(vm: &Vm) -> Result<DeviceFd, KvmError> {
    let mut device = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
        ..Default::default()
    };
    vm.create_device(&mut device)
        .map_err(KvmError::call("create the VFIO device"))
}

/// The memory slots of a VM.
struct Slots(Vm);

impl GuestWindows for Slots {
    fn window(&self, memory: MmapRegion) -> io::Result<Box<dyn GuestWindow>> {
        let region = GuestRegionMmap::new(memory, GuestAddress(0));
        let region = region.ok_or(io::ErrorKind::InvalidInput)?;
        let memory = GuestMemoryMmap::from_regions(vec![region]).map_err(io::Error::other)?;
        Ok(Box::new(
            self.0.window(Arc::new(memory)).map_err(io::Error::other)?,
        ))
    }
}

impl GuestWindow for Window {
    fn show(&self, at: Option<u64>) -> io::Result<()> {
        Window::show(self, at).map_err(io::Error::other)
    }
}
