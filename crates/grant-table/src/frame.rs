//! Frames of memory that others read and write at any time. All unsafe code that no device of Linux's needs is here.
//!
//! Words are reached through atomics only, each always with the same width. Bulk copies go straight between frames; what a copy sees of
//! bytes that change meanwhile is any mix of old and new, and callers never decide anything by bytes that they did not copy out first.

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::guest::Access;
use crate::spec::PAGE_SIZE;

/// The memory of an in-process frame.
#[repr(C, align(4096))]
struct Page(std::cell::UnsafeCell<[u8; PAGE_SIZE]>);

// SAFETY: the bytes are reached only as `Frame` does, which is sound from any thread.
unsafe impl Sync for Page {}

/// A page of memory and its machine frame number. Clones are the same page, which lives until the last is gone.
#[derive(Clone)]
pub struct Frame {
    page: NonNull<u8>,
    /// How many of its bytes may be written: all or none.
    writable: usize,
    number: u64,
    owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the page is valid wherever the frame is, as `owner` keeps it, and is reached only by atomics and by copies that tolerate races.
unsafe impl Send for Frame {}
// SAFETY: as above.
unsafe impl Sync for Frame {}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame({:#x})", self.number)
    }
}

impl Frame {
    /// A new page of zeros, with a number that no other has.
    pub fn allocate() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0x10_0000);
        // In a box, lest the counts of all pages lie in the same set of the cache.
        let page = Arc::new(Box::new(Page(std::cell::UnsafeCell::new([0; PAGE_SIZE]))));
        Self {
            page: NonNull::from(&**page).cast(),
            writable: PAGE_SIZE,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            owner: page,
        }
    }

    /// The page at `page`, numbered `number`, which `owner` keeps.
    ///
    /// # Safety
    ///
    /// `page` is aligned to 4096 and its 4096 bytes are readable, and with [`Access::ReadWrite`] writable, until the last clone of `owner`
    /// is gone. No Rust reference to these bytes exists meanwhile, but for atomics.
    pub unsafe fn from_raw(
        page: NonNull<u8>,
        access: Access,
        number: u64,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        let writable = match access {
            Access::ReadOnly => 0,
            Access::ReadWrite => PAGE_SIZE,
        };
        Self {
            page,
            writable,
            number,
            owner,
        }
    }

    /// The same page, not to be written through this clone nor those of it.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self {
            writable: 0,
            ..self
        }
    }

    /// The machine frame number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The machine address of the frame's first byte.
    pub fn address(&self) -> u64 {
        self.number.saturating_mul(4096)
    }

    /// Where the page is in this process, for whoever maps it elsewhere. It is readable there as long as a clone of the frame lives, and
    /// writable as far as the frame is; others may read and write it at any time.
    pub fn as_ptr(&self) -> *mut u8 {
        self.page.as_ptr()
    }

    /// Whether the two are the same page.
    pub fn is(&self, other: &Self) -> bool {
        self.page == other.page
    }

    /// Whether nobody else holds the page.
    pub(crate) fn is_sole(&self) -> bool {
        Arc::strong_count(&self.owner) == 1
    }

    /// The byte at `offset`; none beyond the page or where it is read-only.
    pub fn u8(&self, offset: usize) -> Option<&AtomicU8> {
        let pointer = self.word(offset, 1)?.cast::<AtomicU8>();
        // SAFETY: in the page, which lives as long as `self`.
        Some(unsafe { pointer.as_ref() })
    }

    /// The word at `offset`; none beyond the page, where it is not aligned or where the page is read-only.
    pub fn u16(&self, offset: usize) -> Option<&AtomicU16> {
        let pointer = self.word(offset, 2)?.cast::<AtomicU16>();
        // SAFETY: aligned and in the page, which lives as long as `self`.
        Some(unsafe { pointer.as_ref() })
    }

    /// The word at `offset`; none beyond the page, where it is not aligned or where the page is read-only.
    pub fn u32(&self, offset: usize) -> Option<&AtomicU32> {
        let pointer = self.word(offset, 4)?.cast::<AtomicU32>();
        // SAFETY: aligned and in the page, which lives as long as `self`.
        Some(unsafe { pointer.as_ref() })
    }

    /// The word at `offset`; none beyond the page, where it is not aligned or where the page is read-only.
    pub fn u64(&self, offset: usize) -> Option<&AtomicU64> {
        let pointer = self.word(offset, 8)?.cast::<AtomicU64>();
        // SAFETY: aligned and in the page, which lives as long as `self`.
        Some(unsafe { pointer.as_ref() })
    }

    fn word(&self, offset: usize, size: usize) -> Option<NonNull<u8>> {
        (offset < self.writable && offset.is_multiple_of(size)).then(|| {
            // SAFETY: in the page, as `size` divides its size.
            unsafe { self.page.add(offset) }
        })
    }

    /// Copies bytes from `offset` on. False, and nothing is copied, where they leave the page.
    #[must_use]
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> bool {
        if !within(offset, bytes.len(), PAGE_SIZE) {
            return false;
        }
        // SAFETY: the source is in the page, and `bytes` is exclusively ours, so it is not.
        unsafe {
            self.page
                .add(offset)
                .as_ptr()
                .copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len());
        }
        true
    }

    /// Copies bytes to `offset` on. False, and nothing is copied, where they leave the page or it is read-only.
    #[must_use]
    pub fn write(&self, offset: usize, bytes: &[u8]) -> bool {
        if !within(offset, bytes.len(), self.writable) {
            return false;
        }
        // SAFETY: the destination is in the page, to bytes of which no reference exists.
        unsafe {
            self.page
                .add(offset)
                .as_ptr()
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        true
    }

    /// Copies `length` bytes between pages, which may be the same. False, and nothing is copied, where they leave a page or `dest` is read-only.
    #[must_use]
    pub fn copy_to(&self, offset: usize, dest: &Self, dest_offset: usize, length: usize) -> bool {
        if !within(offset, length, PAGE_SIZE) || !within(dest_offset, length, dest.writable) {
            return false;
        }
        // SAFETY: both ranges are in their pages; the copy allows them to overlap.
        unsafe {
            let from = self.page.add(offset).as_ptr();
            dest.page.add(dest_offset).as_ptr().copy_from(from, length);
        }
        true
    }

    /// Fills the page with zeros, unless it is read-only.
    pub fn clear(&self) {
        // SAFETY: all that may be written of the page, to bytes of which no reference exists.
        unsafe { self.page.as_ptr().write_bytes(0, self.writable) }
    }
}

fn within(offset: usize, length: usize, limit: usize) -> bool {
    offset.checked_add(length).is_some_and(|end| end <= limit)
}
