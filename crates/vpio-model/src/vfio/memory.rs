use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use sriov_vfio::vfio::{DmaError, DmaSpace, map_guest_memory};
use vm_memory::bitmap::Bitmap;
use vm_memory::mmap::FromRangesError;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::engine::Dma;
use crate::language::Access;

/// Why a device cannot be given memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestDmaError {
    /// There is no memory for copies of descriptors.
    #[error("{size:#x} bytes for copies of descriptors at I/O address {base:#x}: {source}")]
    Shadow {
        /// Where they were to be for the device.
        base: u64,
        /// Their size.
        size: u64,
        /// Why.
        source: FromRangesError,
    },
    /// Memory cannot be mapped for the device.
    #[error(transparent)]
    Map(#[from] DmaError),
}

/// What a device reaches through an I/O address space that nobody else uses: the guest's memory, at the guest's addresses, and behind it
/// the copies of descriptors.
pub struct GuestDma<B: Bitmap + 'static = ()> {
    memory: Arc<GuestMemoryMmap<B>>,
    shadow: Option<Arc<GuestMemoryMmap>>,
    base: u64,
}

impl<B: Bitmap + Send + Sync + 'static> GuestDma<B> {
    /// Maps all of `memory`, and at `base`, which is not in it, `shadow` bytes for the copies:
    /// [`shadow_bytes`](crate::model::Model::shadow_bytes) of the model. All of `base` to its end must be in what the device can
    /// address. With a kernel, `space` must have its device already.
    ///
    /// # Errors
    ///
    /// There is no memory, or the space refuses it; what is mapped by then stays.
    pub fn map(
        space: &dyn DmaSpace,
        memory: Arc<GuestMemoryMmap<B>>,
        base: u64,
        shadow: u64,
    ) -> Result<Self, GuestDmaError> {
        map_guest_memory(space, &memory)?;
        let shadow = match shadow {
            0 => None,
            size => {
                // What does not fit into a process is refused as what it cannot have.
                let bytes = usize::try_from(size).unwrap_or(usize::MAX);
                let own = GuestMemoryMmap::from_ranges(&[(GuestAddress(base), bytes)]);
                let own = own.map_err(|source| GuestDmaError::Shadow { base, size, source })?;
                let own = Arc::new(own);
                map_guest_memory(space, &own)?;
                Some(own)
            }
        };
        Ok(Self {
            memory,
            shadow,
            base,
        })
    }

    fn shadow_at(&self, offset: u64) -> Option<(&GuestMemoryMmap, GuestAddress)> {
        let at = GuestAddress(self.base).checked_add(offset)?;
        Some((self.shadow.as_deref()?, at))
    }
}

impl<B: Bitmap + Send + Sync + 'static> Dma for GuestDma<B> {
    fn translate(&self, address: u64, length: u64, _access: Access) -> Option<u64> {
        address.checked_add(length.checked_sub(1)?)?;
        let length = usize::try_from(length).ok()?;
        let all = self.memory.check_range(GuestAddress(address), length);
        all.then_some(address)
    }

    fn read(&self, address: u64, data: &mut [u8]) -> bool {
        self.memory.read_slice(data, GuestAddress(address)).is_ok()
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        self.memory.write_slice(data, GuestAddress(address)).is_ok()
    }

    fn shadow(&self) -> u64 {
        self.base
    }

    fn read_shadow(&self, offset: u64, data: &mut [u8]) {
        let read = self.shadow_at(offset);
        let read = read.is_some_and(|(shadow, at)| shadow.read_slice(data, at).is_ok());
        if !read {
            data.fill(0);
        }
        // The device writes the rest of an entry before it gives it back.
        fence(Ordering::Acquire);
    }

    fn write_shadow(&self, offset: u64, data: &[u8]) {
        // The device sees an entry that is its own with all that was written before.
        fence(Ordering::Release);
        if let Some((shadow, at)) = self.shadow_at(offset) {
            // The model says how much it needs.
            let _outside = shadow.write_slice(data, at);
        }
    }
}
