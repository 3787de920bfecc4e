//! A container of VFIO as the IOMMU behind an emulated one: devices reach, and the host pins, only what the guest's tables map.

use std::io;
use std::sync::Arc;

use iommu_emul::mapping::{BackendError, PageRange, PhysicalIommu, Ticket};
use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryMmap, Permissions};

use super::memory::HostMemory;
use super::space::{Access, DmaSpace};

/// An I/O address space as a [`PhysicalIommu`]. Physical addresses are the guest's.
///
/// VFIO type 1 reports faults to nobody in user space: what a device tries outside its mappings is blocked, and shows in the host's
/// log only. Its unmap ends with the invalidation done, so that there is nothing to wait for.
pub struct VfioIommu<B: Bitmap + 'static = ()> {
    space: Arc<dyn DmaSpace>,
    memory: Arc<GuestMemoryMmap<B>>,
}

impl<B: Bitmap + Send + Sync + 'static> VfioIommu<B> {
    /// `space` must be empty, and is nobody else's to map.
    pub fn new(space: Arc<dyn DmaSpace>, memory: Arc<GuestMemoryMmap<B>>) -> Self {
        Self { space, memory }
    }
}

impl<B: Bitmap + Send + Sync + 'static> PhysicalIommu for VfioIommu<B> {
    fn map(&self, iova: PageRange, physical: u64, access: Permissions) -> Result<(), BackendError> {
        let memory = HostMemory::of(&self.memory, GuestAddress(physical), iova.bytes())
            .map_err(|_| BackendError::Range(iova))?;
        let access = match access {
            Permissions::Read => Access::READ,
            Permissions::Write => Access::WRITE,
            Permissions::ReadWrite => Access::all(),
            Permissions::No => return Err(BackendError::Range(iova)),
        };
        let mapped = self.space.map(iova.address, &memory, access);
        mapped.map_err(|error| match error.kind() {
            io::ErrorKind::OutOfMemory | io::ErrorKind::StorageFull => BackendError::Full(iova),
            _ => BackendError::Io(error),
        })
    }

    fn unmap(&self, iova: PageRange) -> Result<(), BackendError> {
        Ok(self.space.unmap(iova.address, iova.bytes())?)
    }

    fn invalidate(&self, _: Option<PageRange>) -> Ticket {
        Ticket(0)
    }

    fn done(&self, _: Ticket) -> bool {
        true
    }
}
