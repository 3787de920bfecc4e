use std::sync::Arc;

/// What a device answers when it cannot carry out an access.
///
/// The guest never sees this value: the bus turns a failed read into all ones, ignores a failed
/// write, and counts both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The device has no register that can be accessed with this width.
    #[error("access of {width} bytes at offset {offset:#x} is not supported")]
    Width {
        /// Offset from the start of the region, in bytes.
        offset: u64,
        /// Width of the access, in bytes.
        width: usize,
    },
    /// The access begins in the region and ends behind it.
    #[error("access of {width} bytes at offset {offset:#x} crosses the end of the region")]
    Straddle {
        /// Offset from the start of the region, in bytes.
        offset: u64,
        /// Width of the access, in bytes.
        width: usize,
    },
    /// The device has no register at this offset, or not in this direction.
    #[error("no register at offset {offset:#x}")]
    NoRegister {
        /// Offset from the start of the region, in bytes.
        offset: u64,
    },
    /// The access was refused by policy (a hook, a permission).
    #[error("access at offset {offset:#x} was denied")]
    Denied {
        /// Offset from the start of the region, in bytes.
        offset: u64,
    },
}

/// A device behind a region of a bus.
///
/// Offsets are relative to the start of the region, so that a device does not learn (or care) where it
/// is mapped. Accesses are 1, 2, 4 or 8 bytes wide, little-endian, and never cross the end of the region.
/// Several vCPUs may call at once.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` bytes at `offset`. On error the contents of `data` are ignored.
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError>;

    /// Writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError>;
}

impl<T: BusDevice + ?Sized> BusDevice for Arc<T> {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        (**self).read(offset, data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        (**self).write(offset, data)
    }
}
