use std::io;
use std::sync::{PoisonError, RwLock};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::backend::BlockBackend;

/// A disk in memory, for tests and for scratch space.
#[derive(Debug)]
pub struct MemoryDisk {
    bytes: RwLock<Vec<u8>>,
    read_only: bool,
}

impl MemoryDisk {
    /// A disk with these contents.
    pub fn new(bytes: Vec<u8>, read_only: bool) -> Self {
        Self {
            bytes: RwLock::new(bytes),
            read_only,
        }
    }

    /// A copy of the contents.
    pub fn contents(&self) -> Vec<u8> {
        self.bytes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn with<R>(
        &self,
        offset: u64,
        len: u64,
        f: impl FnOnce(&mut [u8]) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        let range = usize::try_from(offset).ok().and_then(|start| {
            let end = start.checked_add(usize::try_from(len).ok()?)?;
            bytes.get_mut(start..end)
        });
        f(range.ok_or(io::ErrorKind::UnexpectedEof)?)
    }
}

impl BlockBackend for MemoryDisk {
    fn size(&self) -> u64 {
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        u64::try_from(bytes.len()).unwrap_or(u64::MAX)
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn physical_block(&self) -> u32 {
        512
    }

    fn read<B: BitmapSlice>(
        &self,
        mut offset: u64,
        buffers: &[VolatileSlice<'_, B>],
    ) -> io::Result<()> {
        for buffer in buffers {
            self.with(offset, buffer.len() as u64, |bytes| {
                buffer.copy_from(bytes);
                Ok(())
            })?;
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    fn write<B: BitmapSlice>(
        &self,
        mut offset: u64,
        buffers: &[VolatileSlice<'_, B>],
        _durable: bool,
    ) -> io::Result<()> {
        for buffer in buffers {
            self.with(offset, buffer.len() as u64, |bytes| {
                buffer.copy_to(bytes);
                Ok(())
            })?;
            offset += buffer.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len, true)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        self.with(offset, len, |bytes| {
            bytes.fill(0);
            Ok(())
        })
    }
}
