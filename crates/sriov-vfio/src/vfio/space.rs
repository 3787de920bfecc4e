use std::io;
use std::sync::Arc;

use bitflags::bitflags;

use super::device::VfioDevice;
use super::memory::HostMemory;
use super::open::OpenError;
use super::token::VfToken;
use crate::sysfs::PciAddress;

bitflags! {
    /// What a device may do to memory.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Access: u32 {
        /// Read it.
        const READ = 1 << 0;
        /// Write it.
        const WRITE = 1 << 1;
    }
}

/// The I/O address space of one or more devices (a container of type 1, an IOAS).
pub trait DmaSpace: Send + Sync {
    /// Lets the devices reach `memory` at `iova`, where nothing is mapped. All is page-aligned. The memory is pinned, and kept, until it
    /// is unmapped.
    fn map(&self, iova: u64, memory: &HostMemory, access: Access) -> io::Result<()>;

    /// Takes back `size` bytes from `iova` on: whole mappings. After it returns, no device reaches them.
    fn unmap(&self, iova: u64, size: u64) -> io::Result<()>;
}

/// An I/O address space in which functions are opened.
pub trait VfioSpace: DmaSpace {
    /// Opens a function that is bound to `vfio-pci`, and whose IOMMU group is nobody else's and in no other space. From now on it reaches what is mapped
    /// here. A container can be mapped to only once it has a function.
    ///
    /// `token` is what the user of its physical function has set, if that is bound to `vfio-pci` too; for a physical function it is the one to set.
    fn open(
        self: Arc<Self>,
        function: PciAddress,
        token: Option<VfToken>,
    ) -> Result<Arc<dyn VfioDevice>, OpenError>;
}

/// How a process has functions of VFIO: by their groups, or each by a file of its own and an iommufd.
pub trait VfioHost: Send + Sync {
    /// A new I/O address space, without functions.
    fn space(&self) -> Result<Arc<dyn VfioSpace>, OpenError>;
}
