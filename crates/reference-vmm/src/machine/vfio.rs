//! Functions of the host that VFIO lets the guest drive.

use std::io;
use std::sync::Arc;

use kvm_bindings::{kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO};
use pio_mmio_bus::pci::{PciFunction, RequesterId, RootError};
use sriov_vfio::sysfs::{PciAddress, Sysfs, SysfsError};
use sriov_vfio::vfio::kernel::Container;
use sriov_vfio::vfio::{
    AssignError, AssignedFunction, DmaError, GuestWindow, GuestWindows, OpenError, Policy,
    map_guest_memory,
};
use vfio_ioctls::VfioDeviceFd;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::MachineError;
use super::board::Motherboard;
use crate::kvm::{KvmError, Vm, Window};

/// Device number of the first of them on bus 0; the others come before it.
const FIRST: u8 = 24;

/// Why a function of the host could not be given to the guest.
#[derive(Debug, thiserror::Error)]
pub enum VfioError {
    /// Its DMA would pass by the IOMMU.
    #[error(
        "an assigned function reaches all of the guest's memory, and cannot be put behind an IOMMU"
    )]
    Iommu,
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
    functions: Vec<Arc<AssignedFunction>>,
}

impl Assigned {
    /// Takes the functions from the host, lets them reach the guest's memory, and puts them on bus 0.
    pub(super) fn attach(
        addresses: &[PciAddress],
        vm: &Vm,
        board: &Motherboard,
    ) -> Result<Self, MachineError> {
        let mut functions = Vec::new();
        if addresses.is_empty() {
            return Ok(Self { functions });
        }
        let sysfs = Sysfs::default();
        let container = Container::new(Some(kvm_device(vm)?)).map_err(VfioError::from)?;
        for (index, &address) in addresses.iter().enumerate() {
            if addresses.iter().take(index).any(|other| *other == address) {
                return Err(VfioError::Twice(address).into());
            }
            let device = container.open(&sysfs, address).map_err(VfioError::from)?;
            let known = sysfs.function(address).map_err(VfioError::from)?;
            let policy = Policy {
                identity: Some((known.vendor, known.device)),
                ..Policy::default()
            };
            let router = board.controller.router();
            let function = AssignedFunction::new(device, policy, board.root.decoder(), router)
                .map_err(|source| VfioError::Assign {
                    function: address,
                    source,
                })?;
            function
                .show_bars(&Slots(vm.clone()))
                .map_err(|source| VfioError::Map {
                    function: address,
                    source,
                })?;
            let number = FIRST.saturating_sub(u8::try_from(index).unwrap_or(u8::MAX));
            let bus = board.root.bus();
            bus.insert(RequesterId::devfn_of(number, 0), function.clone())
                .map_err(RootError::from)?;
            functions.push(function);
        }
        // VFIO has an address space once it has a function.
        map_guest_memory(&*container, vm.memory()).map_err(VfioError::from)?;
        Ok(Self { functions })
    }

    /// Resets the functions: on return no DMA is in flight.
    pub(super) fn stop(&self) {
        for function in &self.functions {
            function.reset();
        }
    }
}

/// KVM's view of VFIO: without, KVM does not know of devices that do not snoop caches.
fn kvm_device(vm: &Vm) -> Result<Arc<VfioDeviceFd>, KvmError> {
    let mut device = kvm_create_device {
        type_: kvm_device_type_KVM_DEV_TYPE_VFIO,
        ..Default::default()
    };
    let device = vm
        .create_device(&mut device)
        .map_err(KvmError::call("create the VFIO device"))?;
    Ok(Arc::new(VfioDeviceFd::new_from_kvm(device)))
}

/// The memory slots of a VM.
struct Slots(Vm);

impl GuestWindows for Slots {
    fn window(&self, memory: MmapRegion) -> io::Result<Box<dyn GuestWindow>> {
        let region = GuestRegionMmap::new(memory, GuestAddress(0));
        let region = region.ok_or(io::ErrorKind::InvalidInput)?;
        let memory = GuestMemoryMmap::from_regions(vec![region]).map_err(io::Error::other)?;
        Ok(Box::new(self.0.window(Arc::new(memory))))
    }
}

impl GuestWindow for Window {
    fn show(&self, at: Option<u64>) -> io::Result<()> {
        Window::show(self, at).map_err(io::Error::other)
    }
}
