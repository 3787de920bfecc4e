//! The device itself.

use std::sync::Arc;

/// A device, as far as models need one. Spaces are numbered as in the model.
pub trait Physical {
    /// Reads a register of 1, 2, 4 or 8 bytes.
    fn read(&self, space: u8, offset: u64, width: u8) -> u64;

    /// Writes a register of 1, 2, 4 or 8 bytes.
    fn write(&self, space: u8, offset: u64, width: u8, value: u64);

    /// Stops everything that the device does and brings it to the state that it is in when the machine starts.
    fn reset(&self);
}

impl<T: Physical + ?Sized> Physical for Arc<T> {
    fn read(&self, space: u8, offset: u64, width: u8) -> u64 {
        (**self).read(space, offset, width)
    }

    fn write(&self, space: u8, offset: u64, width: u8, value: u64) {
        (**self).write(space, offset, width, value);
    }

    fn reset(&self) {
        (**self).reset();
    }
}
