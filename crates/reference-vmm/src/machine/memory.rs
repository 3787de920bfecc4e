use std::fs::File;
use std::io;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use vm_memory::{FileOffset, GuestMemoryMmap};

use super::layout::Layout;

/// The RAM of a machine, as its devices see it.
pub type Memory = Arc<GuestMemoryMmap>;

/// Why RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// There is no file to share it by.
    #[error("cannot make a file of the guest's memory: {0}")]
    File(#[from] io::Error),
    /// It could not be mapped.
    #[error("cannot map the guest's memory: {0}")]
    Map(#[from] vm_memory::mmap::FromRangesError),
}

/// Maps RAM for `layout`, not populated, so that it costs what the guest touches: private, or `shared` by a file for other processes to map,
/// which rely on it that it never gets shorter.
pub(super) fn map(layout: &Layout, shared: bool) -> Result<Memory, MemoryError> {
    let ram = layout.ram();
    let file = if shared {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("guest", flags).map_err(io::Error::from)?);
        file.set_len(ram.iter().map(|(_, size)| size).sum())?;
        fcntl_add_seals(&file, SealFlags::SHRINK).map_err(io::Error::from)?;
        Some(Arc::new(file))
    } else {
        None
    };
    let mut offset = 0;
    let ranges = ram.into_iter().map(|(start, size)| {
        let place = file
            .as_ref()
            .map(|file| FileOffset::from_arc(Arc::clone(file), offset));
        offset += size;
        (start, usize::try_from(size).unwrap_or(usize::MAX), place)
    });
    Ok(GuestMemoryMmap::from_ranges_with_files(ranges.collect::<Vec<_>>()).map(Arc::new)?)
}
