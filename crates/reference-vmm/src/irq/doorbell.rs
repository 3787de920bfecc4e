use std::io;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use pio_mmio_bus::bus::{AddressSpace, DoorbellAddress, DoorbellBinder};
use vmm_sys_util::eventfd::EventFd;

use crate::kvm::Vm;

/// Has the kernel signal doorbells (ioeventfd), so that a guest that rings one does not leave the kernel.
pub struct IoEvents {
    vm: Vm,
}

impl IoEvents {
    /// A binder for `vm`.
    pub fn new(vm: Vm) -> Self {
        Self { vm }
    }
}

/// What tells one ioeventfd from another: `kvm-ioctls` takes the width from the type of the value.
enum Match {
    Any,
    Byte(u8),
    Word(u16),
    Double(u32),
    Quad(u64),
}

impl Match {
    /// A width without a value is nothing that `kvm-ioctls` can say: then the bus goes on ringing the doorbell.
    fn new(address: &DoorbellAddress) -> io::Result<Self> {
        let unsupported = |_| io::ErrorKind::Unsupported;
        Ok(match (address.width, address.datamatch) {
            (None, None) => Self::Any,
            (Some(1), Some(value)) => Self::Byte(value.try_into().map_err(unsupported)?),
            (Some(2), Some(value)) => Self::Word(value.try_into().map_err(unsupported)?),
            (Some(4), Some(value)) => Self::Double(value.try_into().map_err(unsupported)?),
            (Some(8), Some(value)) => Self::Quad(value),
            _ => return Err(io::ErrorKind::Unsupported.into()),
        })
    }
}

fn place(address: &DoorbellAddress) -> IoEventAddress {
    match address.space {
        AddressSpace::Pio => IoEventAddress::Pio(address.address),
        AddressSpace::Mmio => IoEventAddress::Mmio(address.address),
    }
}

impl DoorbellBinder for IoEvents {
    fn bind(&self, address: &DoorbellAddress, eventfd: &EventFd) -> io::Result<()> {
        let (vm, at): (&VmFd, _) = (&self.vm, place(address));
        match Match::new(address)? {
            Match::Any => vm.register_ioevent(eventfd, &at, NoDatamatch)?,
            Match::Byte(value) => vm.register_ioevent(eventfd, &at, value)?,
            Match::Word(value) => vm.register_ioevent(eventfd, &at, value)?,
            Match::Double(value) => vm.register_ioevent(eventfd, &at, value)?,
            Match::Quad(value) => vm.register_ioevent(eventfd, &at, value)?,
        }
        Ok(())
    }

    fn unbind(&self, address: &DoorbellAddress, eventfd: &EventFd) {
        let (vm, at): (&VmFd, _) = (&self.vm, place(address));
        // What was bound can be unbound: KVM finds it by these arguments.
        let _ = match Match::new(address) {
            Ok(Match::Any) => vm.unregister_ioevent(eventfd, &at, NoDatamatch),
            Ok(Match::Byte(value)) => vm.unregister_ioevent(eventfd, &at, value),
            Ok(Match::Word(value)) => vm.unregister_ioevent(eventfd, &at, value),
            Ok(Match::Double(value)) => vm.unregister_ioevent(eventfd, &at, value),
            Ok(Match::Quad(value)) => vm.unregister_ioevent(eventfd, &at, value),
            Err(_) => Ok(()),
        };
    }
}
