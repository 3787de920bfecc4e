use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::{MultibootError, Plan, Segment};

/// How much of a file is searched for the header (§3.1).
pub(in crate::boot) const SEARCHED: usize = 8192;

const MAGIC: u32 = 0x1bad_b002;
/// Flags (§3.1.2): the first 16 are demands, of which modules on page boundaries and memory information are met.
const DEMANDS: u32 = 0xffff;
const MET: u32 = 1 << 0 | 1 << 1;
/// The address fields hold.
const ADDRESSES: u32 = 1 << 16;

/// Size of the header without the address fields.
const SHORT: usize = 12;

/// The header (§3.1.1) up to the address fields.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Words {
    magic: U32,
    flags: U32,
    checksum: U32,
    header: U32,
    load: U32,
    load_end: U32,
    bss_end: U32,
    entry: U32,
}

/// A header that was found, and where in the file.
#[derive(Clone, Copy)]
pub(in crate::boot) struct Header {
    words: Words,
    offset: u32,
}

impl Header {
    /// Looks for a header in the beginning of a file.
    pub(in crate::boot) fn find(beginning: &[u8]) -> Option<Self> {
        let aligned = (0u32..).step_by(4).zip(beginning.chunks(4));
        aligned.take(SEARCHED / 4).find_map(|(offset, _)| {
            let rest = beginning.get(usize::try_from(offset).ok()?..)?;
            if rest.len() < SHORT {
                return None;
            }
            // The last words may be cut off, if they are none of the header.
            let mut bytes = [0; size_of::<Words>()];
            for (byte, value) in bytes.iter_mut().zip(rest) {
                *byte = *value;
            }
            let words = Words::read_from_bytes(&bytes).ok()?;
            let sum = [words.magic, words.flags, words.checksum]
                .into_iter()
                .fold(0u32, |sum, word| sum.wrapping_add(word.get()));
            (words.magic == MAGIC && sum == 0).then_some(Self { words, offset })
        })
    }

    pub(super) fn check_demands(&self) -> Result<(), MultibootError> {
        match self.words.flags.get() & DEMANDS & !MET {
            0 => Ok(()),
            demands => Err(MultibootError::Demands(demands)),
        }
    }

    /// What the address fields say about a file of `size` bytes, if they hold (§3.1.3).
    pub(super) fn plan(&self, size: u64) -> Result<Option<Plan>, MultibootError> {
        let Words {
            flags,
            header,
            load,
            load_end,
            bss_end,
            entry,
            ..
        } = self.words;
        if flags.get() & ADDRESSES == 0 {
            return Ok(None);
        }
        let wrong = MultibootError::Addresses;
        let before_header = header.get().checked_sub(load.get());
        let offset = before_header.and_then(|before| self.offset.checked_sub(before));
        let Some(offset) = offset.map(u64::from) else {
            return Err(wrong);
        };
        let in_file = match load_end.get() {
            0 => size.checked_sub(offset),
            end => end.checked_sub(load.get()).map(u64::from),
        };
        let in_memory = match bss_end.get() {
            0 => Some(0),
            end => end.checked_sub(load.get()).map(u64::from),
        };
        let (Some(in_file), Some(in_memory)) = (in_file, in_memory) else {
            return Err(wrong);
        };
        let segment = Segment {
            offset,
            address: load.get().into(),
            in_file,
            in_memory,
        };
        Ok(Some(Plan {
            segments: vec![segment],
            entry: entry.get(),
        }))
    }
}
