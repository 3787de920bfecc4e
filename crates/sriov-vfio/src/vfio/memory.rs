use std::any::Any;
use std::fmt;
use std::io;
use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
};

use super::space::{Access, DmaSpace};

/// Some memory of this process that belongs to a guest, and is kept as long as this value.
#[derive(Clone)]
pub struct HostMemory {
    address: u64,
    size: u64,
    _memory: Arc<dyn Any + Send + Sync>,
}

impl HostMemory {
    /// `size` bytes from `start` on; they must be in one region.
    pub fn of<B: Bitmap + Send + Sync + 'static>(
        memory: &Arc<GuestMemoryMmap<B>>,
        start: GuestAddress,
        size: u64,
    ) -> Result<Self, DmaError> {
        let error = |source| DmaError::Memory {
            start: start.raw_value(),
            size,
            source,
        };
        let count = usize::try_from(size)
            .map_err(|_| error(GuestMemoryError::InvalidGuestAddress(start)))?;
        let slice = memory.get_slice(start, count).map_err(error)?;
        Ok(Self {
            address: slice.ptr_guard().as_ptr().addr() as u64,
            size,
            _memory: Arc::clone(memory) as Arc<dyn Any + Send + Sync>,
        })
    }

    /// Its address in this process.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl fmt::Debug for HostMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HostMemory({:#x}, {:#x} bytes)", self.address, self.size)
    }
}

/// Why memory could not be given to a device.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DmaError {
    /// It is not all guest memory.
    #[error("{size:#x} bytes at {start:#x}: {source}")]
    Memory {
        /// Guest-physical address.
        start: u64,
        /// Size in bytes.
        size: u64,
        /// Why.
        source: GuestMemoryError,
    },
    /// The kernel refused, for example since more would be pinned than RLIMIT_MEMLOCK allows.
    #[error("{size:#x} bytes at I/O address {iova:#x}: {source}")]
    Refused {
        /// I/O virtual address.
        iova: u64,
        /// Size in bytes.
        size: u64,
        /// Why.
        source: io::Error,
    },
}

/// The regions of a guest's memory, those that follow each other in the guest and in this process as one.
fn runs<B: Bitmap + Send + Sync + 'static>(
    memory: &Arc<GuestMemoryMmap<B>>,
) -> Result<Vec<(u64, HostMemory)>, DmaError> {
    let mut runs: Vec<(u64, HostMemory)> = Vec::new();
    for region in memory.iter() {
        let start = region.start_addr();
        let next = HostMemory::of(memory, start, region.len())?;
        match runs.last_mut() {
            Some((first, run))
                if first.checked_add(run.size) == Some(start.raw_value())
                    && run.address.checked_add(run.size) == Some(next.address) =>
            {
                run.size = run.size.saturating_add(next.size);
            }
            _ => runs.push((start.raw_value(), next)),
        }
    }
    Ok(runs)
}

/// Lets the devices of `space` reach all memory of a guest at its guest-physical addresses: one mapping, and with a kernel one ioctl, for each
/// contiguous run. On error nothing is mapped. Returns the number of mappings.
pub fn map_guest_memory<B: Bitmap + Send + Sync + 'static>(
    space: &dyn DmaSpace,
    memory: &Arc<GuestMemoryMmap<B>>,
) -> Result<usize, DmaError> {
    let runs = runs(memory)?;
    for (mapped, (iova, run)) in runs.iter().enumerate() {
        if let Err(source) = space.map(*iova, run, Access::all()) {
            for (iova, run) in runs.iter().take(mapped) {
                // What is reported is why it failed.
                let _ = space.unmap(*iova, run.size);
            }
            return Err(DmaError::Refused {
                iova: *iova,
                size: run.size,
                source,
            });
        }
    }
    Ok(runs.len())
}

/// Takes back what [`map_guest_memory`] mapped.
pub fn unmap_guest_memory<B: Bitmap + Send + Sync + 'static>(
    space: &dyn DmaSpace,
    memory: &Arc<GuestMemoryMmap<B>>,
) -> Result<(), DmaError> {
    for (iova, run) in runs(memory)? {
        let unmapped = space.unmap(iova, run.size);
        unmapped.map_err(|source| DmaError::Refused {
            iova,
            size: run.size,
            source,
        })?;
    }
    Ok(())
}
