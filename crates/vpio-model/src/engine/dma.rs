//! Guest memory as the device reaches it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::language::Access;

/// The guest's memory, and host memory for the shadows of descriptor tables, as the engine and the device see them.
///
/// Addresses that models compute are guest-physical; what goes to the device is what [`translate`](Self::translate) gives.
/// What it has given must stay true as long as the device may use it.
pub trait Dma {
    /// The device's address of `length` bytes of guest memory, if the guest has all of them, the device may access them in this
    /// way, and they follow each other for the device too. Zero bytes are nothing: None.
    fn translate(&self, address: u64, length: u64, access: Access) -> Option<u64>;

    /// Copies guest memory out. Whether it could be done.
    fn read(&self, address: u64, data: &mut [u8]) -> bool;

    /// Copies into guest memory. Whether it could be done.
    fn write(&self, address: u64, data: &[u8]) -> bool;

    /// The device's address of the shadow memory, which has [`shadow_bytes`](crate::model::Model::shadow_bytes), begins at a
    /// multiple of 4096, and holds zeroes at the start. The guest cannot reach it.
    fn shadow(&self) -> u64;

    /// Copies shadow memory out.
    fn read_shadow(&self, offset: u64, data: &mut [u8]);

    /// Copies into shadow memory.
    fn write_shadow(&self, offset: u64, data: &[u8]);
}

impl<T: Dma + ?Sized> Dma for Arc<T> {
    fn translate(&self, address: u64, length: u64, access: Access) -> Option<u64> {
        (**self).translate(address, length, access)
    }

    fn read(&self, address: u64, data: &mut [u8]) -> bool {
        (**self).read(address, data)
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        (**self).write(address, data)
    }

    fn shadow(&self) -> u64 {
        (**self).shadow()
    }

    fn read_shadow(&self, offset: u64, data: &mut [u8]) {
        (**self).read_shadow(offset, data);
    }

    fn write_shadow(&self, offset: u64, data: &[u8]) {
        (**self).write_shadow(offset, data);
    }
}

/// Where guest memory is for the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Translation {
    /// Guest address = device address: an IOMMU translates, or the guest's memory is the machine's.
    Identity {
        /// Bytes of guest memory, from 0.
        size: u64,
    },
    /// The guest's memory is one piece of the machine's.
    Offset {
        /// The device's address of guest address 0.
        base: u64,
        /// Bytes of guest memory.
        size: u64,
    },
    /// Page by page: those that are pinned.
    Pages(BTreeMap<u64, Page>),
}

/// A page of guest memory that a device may access. Its key is the guest address divided by [`PAGE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// The device's address of it, a multiple of [`PAGE`].
    pub address: u64,
    /// Whether the device may write.
    pub writable: bool,
}

/// Bytes of a page.
pub const PAGE: u64 = 4096;

impl Translation {
    /// What [`Dma::translate`] is to do.
    pub fn translate(&self, address: u64, length: u64, access: Access) -> Option<u64> {
        let last = address.checked_add(length.checked_sub(1)?)?;
        match self {
            Self::Identity { size } => (last < *size).then_some(address),
            Self::Offset { base, size } => {
                base.checked_add(last)?;
                (last < *size).then(|| base.wrapping_add(address))
            }
            Self::Pages(pages) => {
                let first = pages.get(&(address / PAGE))?;
                let mut expected = first.address;
                for number in address / PAGE..=last / PAGE {
                    let page = pages.get(&number)?;
                    let allowed = access == Access::Read || page.writable;
                    if !allowed || page.address != expected {
                        return None;
                    }
                    expected = expected.checked_add(PAGE)?;
                }
                first.address.checked_add(address % PAGE)
            }
        }
    }
}
