//! The memory of a grant table: where the words of an entry lie, in either version.

use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::frame::Frame;
use crate::spec::grant::{GrantRef, V1_ENTRY, V2_ENTRY, V2_STATUS, offset};
use crate::spec::{DomId, PAGE_SIZE};

/// The version of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Version {
    /// 8 bytes an entry, 32 bits a frame number; the header tells whether the entry is in use.
    #[default]
    V1,
    /// 16 bytes an entry, 64 bits a frame number, parts of pages and transitive grants; statuses lie apart.
    V2,
}

impl Version {
    /// The version with this number.
    pub const fn from_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::V1),
            2 => Some(Self::V2),
            _ => None,
        }
    }

    /// Its number.
    pub const fn number(self) -> u32 {
        match self {
            Self::V1 => 1,
            Self::V2 => 2,
        }
    }

    /// Entries in a frame: 2 to the power of this, as all sizes are powers of two, so that finding an entry takes no division.
    const fn per_frame(self) -> u32 {
        match self {
            Self::V1 => per_frame(V1_ENTRY),
            Self::V2 => per_frame(V2_ENTRY),
        }
    }

    /// The frames of statuses that go with `frames` frames of entries.
    pub const fn status_frames(self, frames: usize) -> usize {
        match self {
            Self::V1 => 0,
            Self::V2 => frames.div_ceil(V2_ENTRY / V2_STATUS),
        }
    }
}

/// How many of `size` bytes a frame has room for, as a power of two.
const fn per_frame(size: usize) -> u32 {
    (PAGE_SIZE / size).trailing_zeros()
}

/// The frames of a table. Words of the entries belong to the guest, which may change them at any time.
#[derive(Clone, Debug, Default)]
pub struct EntryTable {
    version: Version,
    frames: Vec<Frame>,
    statuses: Vec<Frame>,
}

/// What a version 2 entry holds in place of a frame when it is transitive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transitive {
    /// Who granted first.
    pub domain: DomId,
    /// Which of its grants.
    pub reference: GrantRef,
}

impl EntryTable {
    /// A table of these frames. Entries whose status would lie beyond `statuses` are left out.
    pub fn new(version: Version, mut frames: Vec<Frame>, statuses: Vec<Frame>) -> Self {
        if version == Version::V2 {
            frames.truncate(statuses.len().saturating_mul(V2_ENTRY / V2_STATUS));
        }
        Self {
            version,
            frames,
            statuses,
        }
    }

    /// The version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The frames of the entries.
    pub fn frames(&self) -> &[Frame] {
        &self.frames
    }

    /// The frames of the statuses: none in version 1.
    pub fn statuses(&self) -> &[Frame] {
        &self.statuses
    }

    /// How many entries there are.
    pub fn entries(&self) -> u32 {
        let entries = self.frames.len() << self.version.per_frame();
        u32::try_from(entries).unwrap_or(u32::MAX)
    }

    /// Which of the frames with 2 to the power of `per_frame` entries has this entry, and at which byte.
    fn locate(frames: &[Frame], reference: GrantRef, per_frame: u32) -> Option<(&Frame, usize)> {
        let index = usize::try_from(reference.0).ok()?;
        let within = index & ((1 << per_frame) - 1);
        let at = within * (PAGE_SIZE >> per_frame);
        Some((frames.get(index >> per_frame)?, at))
    }

    fn entry(&self, reference: GrantRef) -> Option<(&Frame, usize)> {
        Self::locate(&self.frames, reference, self.version.per_frame())
    }

    /// The header: flags and domain.
    pub fn header(&self, reference: GrantRef) -> Option<&AtomicU32> {
        let (frame, at) = self.entry(reference)?;
        frame.u32(at)
    }

    /// The status of an entry of version 2.
    pub fn status(&self, reference: GrantRef) -> Option<&AtomicU16> {
        let (frame, at) = Self::locate(&self.statuses, reference, per_frame(V2_STATUS))?;
        frame.u16(at)
    }

    /// The number of the granted frame.
    pub fn frame(&self, reference: GrantRef) -> Option<u64> {
        let (frame, at) = self.entry(reference)?;
        Some(match self.version {
            Version::V1 => frame
                .u32(at + offset::V1_FRAME)?
                .load(Ordering::Relaxed)
                .into(),
            Version::V2 => frame.u64(at + offset::V2_FRAME)?.load(Ordering::Relaxed),
        })
    }

    /// Sets the number of the frame; false where it does not fit the version.
    #[must_use]
    pub fn set_frame(&self, reference: GrantRef, number: u64) -> bool {
        let Some((frame, at)) = self.entry(reference) else {
            return false;
        };
        match self.version {
            Version::V1 => {
                let word = frame.u32(at + offset::V1_FRAME);
                let set = word.zip(u32::try_from(number).ok());
                set.map(|(word, number)| word.store(number, Ordering::Relaxed))
                    .is_some()
            }
            Version::V2 => {
                let word = frame.u64(at + offset::V2_FRAME);
                word.map(|word| word.store(number, Ordering::Relaxed))
                    .is_some()
            }
        }
    }

    /// Version 2: the words after the header, of 32 and 64 bits.
    fn body(&self, reference: GrantRef) -> Option<(&AtomicU32, &AtomicU64)> {
        if self.version != Version::V2 {
            return None;
        }
        let (frame, at) = self.entry(reference)?;
        Some((
            frame.u32(at + offset::V2_RANGE)?,
            frame.u64(at + offset::V2_FRAME)?,
        ))
    }

    /// The bytes that a sub-page entry of version 2 grants: the first, and how many.
    pub fn range(&self, reference: GrantRef) -> Option<(u16, u16)> {
        let [a, b, c, d] = self
            .body(reference)?
            .0
            .load(Ordering::Relaxed)
            .to_le_bytes();
        Some((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
    }

    /// Sets the bytes that are granted; false in version 1.
    #[must_use]
    pub fn set_range(&self, reference: GrantRef, first: u16, length: u16) -> bool {
        let word = u32::from(length) << 16 | u32::from(first);
        self.body(reference)
            .map(|(range, _)| range.store(word, Ordering::Relaxed))
            .is_some()
    }

    /// What a transitive entry of version 2 refers to.
    pub fn transitive(&self, reference: GrantRef) -> Option<Transitive> {
        let (domain, target) = self.body(reference)?;
        let [a, b, ..] = domain.load(Ordering::Relaxed).to_le_bytes();
        let [c, d, e, f, ..] = target.load(Ordering::Relaxed).to_le_bytes();
        Some(Transitive {
            domain: DomId(u16::from_le_bytes([a, b])),
            reference: GrantRef(u32::from_le_bytes([c, d, e, f])),
        })
    }

    /// Sets what the entry refers to; false in version 1.
    #[must_use]
    pub fn set_transitive(&self, reference: GrantRef, to: Transitive) -> bool {
        let Some((domain, target)) = self.body(reference) else {
            return false;
        };
        domain.store(to.domain.0.into(), Ordering::Relaxed);
        target.store(to.reference.0.into(), Ordering::Relaxed);
        true
    }

    /// Swaps two entries with their statuses; nothing happens if one is not there. The guest must not use them meanwhile.
    pub(crate) fn swap(&self, a: GrantRef, b: GrantRef) {
        fn exchange32(a: Option<&AtomicU32>, b: Option<&AtomicU32>) {
            if let (Some(a), Some(b)) = (a, b) {
                a.store(
                    b.swap(a.load(Ordering::Relaxed), Ordering::Relaxed),
                    Ordering::Relaxed,
                );
            }
        }
        exchange32(self.header(a), self.header(b));
        match self.version {
            Version::V1 => {
                if let (Some(frame_a), Some(frame_b)) = (self.frame(a), self.frame(b)) {
                    let _fits = self.set_frame(a, frame_b) && self.set_frame(b, frame_a);
                }
            }
            Version::V2 => {
                if let (Some((low_a, high_a)), Some((low_b, high_b))) = (self.body(a), self.body(b))
                {
                    exchange32(Some(low_a), Some(low_b));
                    high_a.store(
                        high_b.swap(high_a.load(Ordering::Relaxed), Ordering::Relaxed),
                        Ordering::Relaxed,
                    );
                }
                if let (Some(a), Some(b)) = (self.status(a), self.status(b)) {
                    a.store(
                        b.swap(a.load(Ordering::Relaxed), Ordering::Relaxed),
                        Ordering::Relaxed,
                    );
                }
            }
        }
    }
}
