use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;
use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::backend::BlockBackend;
use super::transfer;

/// A raw image: the bytes of the file are the bytes of the disk. A block device of the host will do, too.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    size: u64,
    read_only: bool,
    physical_block: u32,
}

impl FileDisk {
    /// Opens the image at `path`.
    ///
    /// # Errors
    /// It cannot be opened or its size is not known.
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(!read_only).open(path)?;
        Self::new(file, read_only)
    }

    /// Takes an open image. Its size is fixed from now on.
    ///
    /// # Errors
    /// Its size is not known.
    pub fn new(mut file: File, read_only: bool) -> io::Result<Self> {
        // Seeking also works for block devices, whose metadata says 0.
        let size = io::Seek::seek(&mut file, io::SeekFrom::End(0))?;
        let physical_block = u32::try_from(file.metadata()?.blksize())
            .ok()
            .filter(|size| size.is_power_of_two() && (512..=65536).contains(size))
            .unwrap_or(512);
        Ok(Self {
            file,
            size,
            read_only,
            physical_block,
        })
    }

    fn allocate(&self, mode: FallocateMode, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        fallocate(&self.file, mode, true, offset, len)
            .map_err(|error| io::Error::from_raw_os_error(error.errno()))
    }
}

/// Whether the medium, rather than the request, is the problem.
fn unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::ENODEV)
    )
}

impl BlockBackend for FileDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn physical_block(&self) -> u32 {
        self.physical_block
    }

    fn read<B: BitmapSlice>(
        &self,
        offset: u64,
        buffers: &[VolatileSlice<'_, B>],
    ) -> io::Result<()> {
        transfer::read(self.file.as_fd(), offset, buffers)
    }

    fn write<B: BitmapSlice>(
        &self,
        offset: u64,
        buffers: &[VolatileSlice<'_, B>],
        durable: bool,
    ) -> io::Result<()> {
        transfer::write(self.file.as_fd(), offset, buffers, durable)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.allocate(FallocateMode::PunchHole, offset, len) {
            Err(error) if unsupported(&error) => Ok(()),
            result => result,
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let mode = if unmap {
            FallocateMode::PunchHole
        } else {
            FallocateMode::ZeroRange
        };
        match self.allocate(mode, offset, len) {
            Err(error) if unsupported(&error) => self.overwrite(offset, len),
            result => result,
        }
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }
}

impl FileDisk {
    /// Writes zeros the slow way.
    fn overwrite(&self, offset: u64, len: u64) -> io::Result<()> {
        const ZEROS: &[u8] = &[0; 64 * 1024];
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            let left = usize::try_from(end - at).unwrap_or(usize::MAX);
            let part = ZEROS.get(..left).unwrap_or(ZEROS);
            std::os::unix::fs::FileExt::write_all_at(&self.file, part, at)?;
            at += part.len() as u64;
        }
        Ok(())
    }
}
