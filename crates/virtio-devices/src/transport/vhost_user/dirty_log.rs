//! The log of pages that were written (vhost-user, "Migration").

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::bitmap::{Bitmap, BitmapSlice, WithBitmapSlice};
use vm_memory::{MmapRegion, VolatileMemory};

/// `VHOST_LOG_PAGE`: what one bit of the log stands for, in bytes.
const PAGE: u64 = 0x1000;

/// The frontend's log, as one memory region sees it: a bit for each page of guest-physical memory, in shared memory.
#[derive(Clone, Debug)]
pub struct DirtyLog {
    area: Arc<MmapRegion>,
    /// Guest-physical address of the region.
    start: u64,
}

impl DirtyLog {
    /// The part of the log in `area` for a region of `size` bytes at `start`; `None` if the log does not reach that far.
    pub(super) fn new(area: Arc<MmapRegion>, start: u64, size: u64) -> Option<Self> {
        let last = start.checked_add(size)?.checked_sub(1)?;
        let byte = usize::try_from(last / PAGE / 8).ok()?;
        (byte < area.size()).then_some(Self { area, start })
    }

    /// The page of the byte at `offset`.
    fn page(&self, offset: usize) -> u64 {
        self.start.saturating_add(offset as u64) / PAGE
    }

    /// The byte of the log that has the page's bit, and the bit.
    fn bit(&self, page: u64) -> Option<(&AtomicU8, u8)> {
        let byte = usize::try_from(page / 8).ok()?;
        let byte = self.area.get_atomic_ref(byte).ok()?;
        Some((byte, 1 << (page % 8)))
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyLog {
    type S = DirtyLogSlice<'a>;
}

impl Bitmap for DirtyLog {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let Some(more) = len.checked_sub(1) else {
            return;
        };
        for page in self.page(offset)..=self.page(offset.saturating_add(more)) {
            if let Some((byte, bit)) = self.bit(page)
                && byte.load(Ordering::Relaxed) & bit == 0
            {
                byte.fetch_or(bit, Ordering::Release);
            }
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.bit(self.page(offset))
            .is_some_and(|(byte, bit)| byte.load(Ordering::Acquire) & bit != 0)
    }

    fn slice_at(&self, offset: usize) -> DirtyLogSlice<'_> {
        DirtyLogSlice { log: self, offset }
    }
}

/// The log, as a part of a memory region sees it.
#[derive(Clone, Copy, Debug)]
pub struct DirtyLogSlice<'a> {
    log: &'a DirtyLog,
    offset: usize,
}

impl WithBitmapSlice<'_> for DirtyLogSlice<'_> {
    type S = Self;
}

impl BitmapSlice for DirtyLogSlice<'_> {}

impl Bitmap for DirtyLogSlice<'_> {
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.log.mark_dirty(self.offset.saturating_add(offset), len);
    }

    fn dirty_at(&self, offset: usize) -> bool {
        self.log.dirty_at(self.offset.saturating_add(offset))
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self {
            log: self.log,
            offset: self.offset.saturating_add(offset),
        }
    }
}
