use std::io;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::backend::BlockBackend;

/// A disk that stores nothing: what is left is the cost of the queues. Reads leave the driver's buffers as they are.
#[derive(Clone, Copy, Debug)]
pub struct NullDisk {
    size: u64,
}

impl NullDisk {
    /// A disk of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self { size }
    }
}

impl BlockBackend for NullDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        false
    }

    fn physical_block(&self) -> u32 {
        512
    }

    fn is_immediate(&self) -> bool {
        true
    }

    fn read<B: BitmapSlice>(&self, _: u64, _: &[VolatileSlice<'_, B>]) -> io::Result<()> {
        Ok(())
    }

    fn write<B: BitmapSlice>(&self, _: u64, _: &[VolatileSlice<'_, B>], _: bool) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Ok(())
    }
}
