//! The memory that a frontend shares.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use super::dirty_log::DirtyLog;

/// What a device behind vhost-user sees of guest memory. With a log, what is written is marked in it.
pub type SharedMemory = GuestMemoryMmap<Option<DirtyLog>>;

type Mapping = GuestRegionMmap<Option<DirtyLog>>;

/// Regions there may be at once.
pub(super) const MAX_REGIONS: usize = 512;

/// Why shared memory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// More regions than are kept.
    #[error("more than {MAX_REGIONS} memory regions")]
    TooMany,
    /// The region is empty, or passes the end of an address space.
    #[error("region of {size:#x} bytes at {guest:#x} ({user:#x} in the frontend) is not possible")]
    Range {
        /// Guest-physical address.
        guest: u64,
        /// Address in the frontend's process.
        user: u64,
        /// Length in bytes.
        size: u64,
    },
    /// The file is not one that can be mapped.
    #[error("not a file in memory or on a disk")]
    NotAFile,
    /// The file ends before the region, so that touching the rest would raise a signal.
    #[error("{size:#x} bytes at {offset:#x} of a file of {len:#x}")]
    ShortFile {
        /// Where the mapping begins, in bytes.
        offset: u64,
        /// Its length in bytes.
        size: u64,
        /// The file's length in bytes.
        len: u64,
    },
    /// The operating system cannot map it.
    #[error("cannot map: {0}")]
    Map(#[from] vm_memory::mmap::MmapRegionError),
    /// The file cannot be examined.
    #[error(transparent)]
    File(#[from] io::Error),
    /// Regions overlap.
    #[error("{0}")]
    Overlap(#[from] vm_memory::GuestRegionCollectionError),
    /// There is no such region to remove.
    #[error("no region of {size:#x} bytes at {guest:#x}")]
    Unknown {
        /// Guest-physical address.
        guest: u64,
        /// Length in bytes.
        size: u64,
    },
    /// The log has no bits for some of the memory.
    #[error("the log does not reach memory at {0:#x}")]
    ShortLog(u64),
}

/// Maps `size` bytes at `offset` of `file`, shared, if the file has them.
pub(super) fn map<B: vm_memory::bitmap::Bitmap>(
    file: Arc<File>,
    offset: u64,
    size: u64,
    bitmap: B,
) -> Result<MmapRegion<B>, MemoryError> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(MemoryError::NotAFile);
    }
    let len = metadata.len();
    let error = MemoryError::ShortFile { offset, size, len };
    if size == 0 || offset.checked_add(size).is_none_or(|end| end > len) {
        return Err(error);
    }
    let size = usize::try_from(size).map_err(|_| error)?;
    Ok(MmapRegionBuilder::new_with_bitmap(size, bitmap)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .with_file_offset(FileOffset::from_arc(file, offset))
        .build()?)
}

/// A region of guest memory, in three address spaces: the guest's, the frontend's, and ours.
#[derive(Clone)]
struct Region {
    guest: u64,
    user: u64,
    size: u64,
    file: Arc<File>,
    offset: u64,
    mapping: Arc<Mapping>,
}

impl Region {
    fn new(
        region: &VhostUserMemoryRegion,
        file: Arc<File>,
        log: Option<&Arc<MmapRegion>>,
    ) -> Result<Self, MemoryError> {
        let (guest, user, size) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        let offset = region.mmap_offset;
        let error = MemoryError::Range { guest, user, size };
        if size == 0 || user.checked_add(size).is_none() {
            return Err(error);
        }
        let log = match log {
            Some(area) => Some(
                DirtyLog::new(Arc::clone(area), guest, size).ok_or(MemoryError::ShortLog(guest))?,
            ),
            None => None,
        };
        let mapping = map(Arc::clone(&file), offset, size, log)?;
        let mapping = Mapping::new(mapping, GuestAddress(guest)).ok_or(error)?;
        Ok(Self {
            guest,
            user,
            size,
            file,
            offset,
            mapping: Arc::new(mapping),
        })
    }
}

/// The table of regions.
#[derive(Clone, Default)]
pub(super) struct MemoryTable {
    regions: Vec<Region>,
    log: Option<Arc<MmapRegion>>,
    memory: Arc<SharedMemory>,
}

impl MemoryTable {
    /// The memory that devices use.
    pub(super) fn memory(&self) -> &Arc<SharedMemory> {
        &self.memory
    }

    /// The table with other regions.
    pub(super) fn replaced(
        &self,
        regions: impl ExactSizeIterator<Item = (VhostUserMemoryRegion, File)>,
    ) -> Result<Self, MemoryError> {
        if regions.len() > MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let regions = regions
            .map(|(region, file)| Region::new(&region, Arc::new(file), self.log.as_ref()))
            .collect::<Result<_, _>>()?;
        Self::new(regions, self.log.clone())
    }

    /// The table with another region.
    pub(super) fn added(
        &self,
        region: &VhostUserMemoryRegion,
        file: File,
    ) -> Result<Self, MemoryError> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany);
        }
        let mut regions = self.regions.clone();
        regions.push(Region::new(region, Arc::new(file), self.log.as_ref())?);
        Self::new(regions, self.log.clone())
    }

    /// The table without this region. Its place in the file does not count.
    pub(super) fn removed(&self, region: &VhostUserMemoryRegion) -> Result<Self, MemoryError> {
        let (guest, user, size) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        let mut regions = self.regions.clone();
        regions.retain(|region| (region.guest, region.user, region.size) != (guest, user, size));
        if regions.len() == self.regions.len() {
            return Err(MemoryError::Unknown { guest, size });
        }
        Self::new(regions, self.log.clone())
    }

    /// The table with this log, or with none.
    pub(super) fn logged(&self, log: Option<&Arc<MmapRegion>>) -> Result<Self, MemoryError> {
        let regions = self.regions.iter().map(|region| {
            let place =
                VhostUserMemoryRegion::new(region.guest, region.size, region.user, region.offset);
            Region::new(&place, Arc::clone(&region.file), log)
        });
        Self::new(regions.collect::<Result<_, _>>()?, log.cloned())
    }

    fn new(mut regions: Vec<Region>, log: Option<Arc<MmapRegion>>) -> Result<Self, MemoryError> {
        regions.sort_unstable_by_key(|region| region.mapping.start_addr());
        let memory = if regions.is_empty() {
            SharedMemory::default()
        } else {
            let mappings = regions.iter().map(|region| Arc::clone(&region.mapping));
            SharedMemory::from_arc_regions(mappings.collect())?
        };
        Ok(Self {
            regions,
            log,
            memory: Arc::new(memory),
        })
    }

    /// The guest-physical address of an address in the frontend's process.
    pub(super) fn guest_address(&self, user: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|region| {
            let offset = user
                .checked_sub(region.user)
                .filter(|offset| *offset < region.size)?;
            region.guest.checked_add(offset).map(GuestAddress)
        })
    }
}
