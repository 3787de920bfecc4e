use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use sriov_vfio::vfio::{DmaError, DmaSpace, map_guest_memory, unmap_guest_memory};
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

/// What a device reaches through an I/O address space for one guest: its memory, and elsewhere the copies of descriptors.
pub struct GuestDma<B: Bitmap + 'static = ()> {
    /// At the device's addresses.
    memory: Arc<GuestMemoryMmap<B>>,
    /// The device's address of guest address 0.
    guest: u64,
    shadow: Option<Arc<GuestMemoryMmap>>,
    base: u64,
}

impl<B: Bitmap + Send + Sync + 'static> GuestDma<B> {
    /// Maps all of `memory` at the guest's addresses, and at `base`, which is not in it, `shadow` bytes for the copies:
    /// [`shadow_bytes`](crate::model::Model::shadow_bytes) of the model. All of `base` to its end must be in what the device can
    /// address. With a kernel, `space` must have its device already.
    ///
    /// # Errors
    ///
    /// There is no memory, or the space refuses it; nothing is mapped then.
    pub fn map(
        space: &dyn DmaSpace,
        memory: Arc<GuestMemoryMmap<B>>,
        base: u64,
        shadow: u64,
    ) -> Result<Self, GuestDmaError> {
        Self::map_from(space, memory, 0, base, shadow)
    }

    /// The same where the device has guest address 0 at `guest`, and `memory` is at the device's addresses: of several guests, each has
    /// addresses of its own.
    ///
    /// # Errors
    ///
    /// As of [`map`](Self::map).
    pub fn map_from(
        space: &dyn DmaSpace,
        memory: Arc<GuestMemoryMmap<B>>,
        guest: u64,
        base: u64,
        shadow: u64,
    ) -> Result<Self, GuestDmaError> {
        map_guest_memory(space, &memory)?;
        let shadow = map_shadow(space, base, shadow).inspect_err(|_| {
            // What is reported is why it failed.
            let _still = unmap_guest_memory(space, &memory);
        })?;
        Ok(Self {
            memory,
            guest,
            shadow,
            base,
        })
    }

    /// Takes everything back. After it returns, no device reaches it.
    ///
    /// # Errors
    ///
    /// The space refuses; what it did not take back stays mapped, and kept.
    pub fn unmap(&self, space: &dyn DmaSpace) -> Result<(), GuestDmaError> {
        if let Some(shadow) = &self.shadow {
            unmap_guest_memory(space, shadow)?;
        }
        Ok(unmap_guest_memory(space, &self.memory)?)
    }

    /// The device's address of guest memory.
    fn at(&self, address: u64) -> Option<GuestAddress> {
        GuestAddress(self.guest).checked_add(address)
    }

    fn shadow_at(&self, offset: u64) -> Option<(&GuestMemoryMmap, GuestAddress)> {
        let at = GuestAddress(self.base).checked_add(offset)?;
        Some((self.shadow.as_deref()?, at))
    }
}

fn map_shadow(
    space: &dyn DmaSpace,
    base: u64,
    size: u64,
) -> Result<Option<Arc<GuestMemoryMmap>>, GuestDmaError> {
    if size == 0 {
        return Ok(None);
    }
    // What does not fit into a process is refused as what it cannot have.
    let bytes = usize::try_from(size).unwrap_or(usize::MAX);
    let own = GuestMemoryMmap::from_ranges(&[(GuestAddress(base), bytes)]);
    let own = own.map_err(|source| GuestDmaError::Shadow { base, size, source })?;
    let own = Arc::new(own);
    map_guest_memory(space, &own)?;
    Ok(Some(own))
}

impl<B: Bitmap + Send + Sync + 'static> Dma for GuestDma<B> {
    fn translate(&self, address: u64, length: u64, _access: Access) -> Option<u64> {
        let first = self.at(address)?;
        first.checked_add(length.checked_sub(1)?)?;
        let length = usize::try_from(length).ok()?;
        let all = self.memory.check_range(first, length);
        all.then_some(first.raw_value())
    }

    fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let at = self.at(address);
        at.is_some_and(|at| self.memory.read_slice(data, at).is_ok())
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        let at = self.at(address);
        at.is_some_and(|at| self.memory.write_slice(data, at).is_ok())
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
