//! A guest's memory as an arbiter has it, and where its device reaches it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{SealFlags, fcntl_get_seals, fstatfs};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

/// Where the memory of all guests is for the device, which may address no more than 4 GiB: behind it are copies of descriptors, and
/// behind those the addresses of interrupts.
const END: u64 = 0xc000_0000;
/// Where copies of descriptors are.
const COPIES: u64 = END;
/// Where they end.
const COPIES_END: u64 = 0xfe00_0000;
/// Pieces of memory that a guest may have.
const MAX_PIECES: usize = 16;
/// What the memory of a guest begins at a multiple of, so that an IOMMU can use large pages.
const ALIGNMENT: u64 = 2 << 20;
const PAGE: u64 = 4096;
/// The file system of memfd_create(2) (Linux, uapi/linux/magic.h).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Why a guest's memory is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// Not whole pages, nothing, or more than there can be.
    #[error("{size:#x} bytes at {address:#x}, at {offset:#x} of the file: not whole pages")]
    Piece {
        /// Guest-physical address.
        address: u64,
        /// Bytes.
        size: u64,
        /// Where in the file.
        offset: u64,
    },
    /// More pieces than an arbiter takes.
    #[error("more than {MAX_PIECES} pieces")]
    Pieces,
    /// The file could be made shorter under the arbiter, whose accesses would then fail like those to no memory.
    #[error("the file is no memfd that is sealed against shrinking")]
    Seal,
    /// There is less in the file.
    #[error("the file ends at {length:#x}, before {end:#x}")]
    Length {
        /// Bytes of the file.
        length: u64,
        /// Where the piece ends.
        end: u64,
    },
    /// It cannot be mapped.
    #[error("cannot map it: {0}")]
    Map(#[from] vm_memory::mmap::FromRangesError),
    /// The guests have more memory than the device can address.
    #[error("{size:#x} bytes do not fit below {END:#x}, with the other guests' memory")]
    Full {
        /// From guest address 0 to the end of its memory.
        size: u64,
    },
}

/// A piece of a guest's memory.
#[derive(Debug)]
pub(super) struct Piece {
    address: u64,
    size: u64,
    file: FileOffset,
}

/// What a guest said of its memory.
#[derive(Debug, Default)]
pub(super) struct Pieces(Vec<Piece>);

impl Pieces {
    pub fn add(
        &mut self,
        (address, size): (u64, u64),
        (file, offset): (OwnedFd, u64),
    ) -> Result<(), MemoryError> {
        let whole = (address | size | offset).is_multiple_of(PAGE) && size != 0;
        let ends = [address, offset].map(|start| start.checked_add(size));
        if !whole || ends.iter().any(|end| end.is_none_or(|end| end > END)) {
            return Err(MemoryError::Piece {
                address,
                size,
                offset,
            });
        }
        if self.0.len() == MAX_PIECES {
            return Err(MemoryError::Pieces);
        }
        let sealed = fcntl_get_seals(&file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        // Pages of other file systems may be missing when they are touched.
        let tmpfs = fstatfs(&file).is_ok_and(|about| about.f_type == TMPFS_MAGIC);
        if !sealed || !tmpfs {
            return Err(MemoryError::Seal);
        }
        let (file, end) = (File::from(file), offset + size);
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        if length < end {
            return Err(MemoryError::Length { length, end });
        }
        self.0.push(Piece {
            address,
            size,
            file: FileOffset::new(file, offset),
        });
        Ok(())
    }

    /// From guest address 0 to the end.
    pub fn extent(&self) -> u64 {
        let ends = self.0.iter().map(|piece| piece.address + piece.size);
        ends.max().unwrap_or(0)
    }

    /// Maps it, at the addresses that the device has for it.
    pub fn map(self, base: u64) -> Result<Arc<GuestMemoryMmap>, MemoryError> {
        let ranges = self.0.into_iter().map(|piece| {
            let at = GuestAddress(base + piece.address);
            let size = usize::try_from(piece.size).unwrap_or(usize::MAX);
            (at, size, Some(piece.file))
        });
        let ranges: Vec<_> = ranges.collect();
        Ok(Arc::new(GuestMemoryMmap::from_ranges_with_files(ranges)?))
    }
}

/// What a guest has of the device's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Of its memory.
    pub base: u64,
    extent: u64,
    /// Of copies of descriptors.
    pub copies: u64,
}

/// Who has which addresses.
#[derive(Debug, Default)]
pub(super) struct Places(Vec<Place>);

impl Places {
    /// Finds room for a guest whose memory ends at `extent`, with `copies` bytes for copies of descriptors.
    pub fn take(&mut self, extent: u64, copies: u64) -> Result<Place, MemoryError> {
        let copies = copies.next_multiple_of(PAGE);
        let free = |candidate: &Place| {
            let apart = |other: &Place| {
                let memory = candidate.base + candidate.extent <= other.base
                    || other.base + other.extent <= candidate.base;
                memory && candidate.copies != other.copies
            };
            let fits = candidate.base + extent <= END && candidate.copies + copies <= COPIES_END;
            fits && self.0.iter().all(apart)
        };
        let bases = self.0.iter().map(|other| other.base + other.extent);
        let bases: Vec<u64> = [0]
            .into_iter()
            .chain(bases.map(|end| end.next_multiple_of(ALIGNMENT)))
            .collect();
        let slots = (0..).take(self.0.len() + 1);
        let places = slots.flat_map(|slot: u64| {
            bases.iter().map(move |base| Place {
                base: *base,
                extent,
                copies: COPIES + slot * copies.max(PAGE),
            })
        });
        let place = places.into_iter().find(free);
        let place = place.ok_or(MemoryError::Full { size: extent })?;
        self.0.push(place);
        Ok(place)
    }

    /// Nobody uses a place any more.
    pub fn give_back(&mut self, place: Place) {
        self.0.retain(|known| *known != place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_have_addresses_of_their_own() {
        let mut places = Places::default();
        let size = 0x1000_1000;
        let taken: Vec<_> = (0..11).map(|_| places.take(size, 5000).unwrap()).collect();
        for (number, place) in taken.iter().zip(0..) {
            assert_eq!(number.base, 0x1020_0000 * place);
            assert_eq!(number.copies, COPIES + 8192 * place);
        }
        assert!(matches!(
            places.take(size, 5000),
            Err(MemoryError::Full { size: 0x1000_1000 })
        ));
        places.give_back(taken[3]);
        assert_eq!(places.take(size, 5000).unwrap(), taken[3]);
        assert!(places.take(0x10_0000, 5000).is_ok(), "behind the last");
    }
}
