//! Rings of requests and responses, which share their slots, between a front end and a back end that do not trust each other.
//!
//! Whatever is taken from a ring is a copy: the other end may go on writing. Each end tells when it wants to be notified; `publish` tells
//! whether the other end does, and `finish` whether something has come since.

mod back;
mod front;
mod notification;

use std::sync::atomic::{AtomicU32, Ordering};

pub use back::Back;
pub use front::Front;

use crate::frame::Frame;
use crate::spec::PAGE_SIZE;
use crate::spec::ring::HEADER;

/// Why a ring cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The pages have no room for a slot, or a ring has too many.
    #[error("{0} pages are no ring")]
    Pages(usize),
    /// The other end's index is further than it can be.
    #[error("the other end's index is {index}, beyond {limit}")]
    Overflow {
        /// What it says.
        index: u32,
        /// What it may say.
        limit: u32,
    },
    /// No request is left to which this could be the response.
    #[error("a response without a request")]
    NoRequest,
    /// All slots hold requests without response.
    #[error("the ring is full")]
    Full,
}

/// The memory of a ring: its pages one after the other.
#[derive(Debug)]
struct Slots {
    pages: Vec<Frame>,
    /// A power of two.
    count: u32,
    size: usize,
}

impl Slots {
    fn new(pages: Vec<Frame>, size: usize) -> Result<Self, RingError> {
        let error = RingError::Pages(pages.len());
        let room = pages
            .len()
            .saturating_mul(PAGE_SIZE)
            .checked_sub(HEADER)
            .ok_or(error)?;
        let fit = u32::try_from(room / size.max(1)).map_err(|_| error)?;
        let count = 1 << fit.checked_ilog2().ok_or(error)?;
        Ok(Self { pages, count, size })
    }

    fn index(&self, offset: usize) -> Option<&AtomicU32> {
        self.pages.first()?.u32(offset)
    }

    fn load(&self, offset: usize) -> u32 {
        self.index(offset)
            .map_or(0, |index| index.load(Ordering::Acquire))
    }

    fn store(&self, offset: usize, value: u32) {
        if let Some(index) = self.index(offset) {
            index.store(value, Ordering::Release);
        }
    }

    /// Makes what was written visible and tells whether the other end wants to know.
    fn publish(&self, produced: usize, event: usize, value: u32) -> bool {
        let words = self.index(produced).zip(self.index(event));
        words.is_some_and(|(produced, event)| notification::publish(produced, event, value))
    }

    /// Asks to be notified of the one after `consumed`; whether it is there already.
    fn finish(&self, produced: usize, event: usize, consumed: u32) -> bool {
        let words = self.index(produced).zip(self.index(event));
        words.is_some_and(|(produced, event)| notification::finish(produced, event, consumed))
    }

    /// Calls `part` with each page that a slot lies in: the page, where in it, and which bytes of the slot.
    fn parts(
        &self,
        index: u32,
        length: usize,
        mut part: impl FnMut(&Frame, usize, std::ops::Range<usize>),
    ) {
        let slot = usize::try_from(index & self.count.wrapping_sub(1)).unwrap_or(0);
        let mut done = 0;
        while done < length.min(self.size) {
            let at = HEADER + slot * self.size + done;
            let Some(page) = self.pages.get(at / PAGE_SIZE) else {
                return;
            };
            let fits = (length.min(self.size) - done).min(PAGE_SIZE - at % PAGE_SIZE);
            part(page, at % PAGE_SIZE, done..done + fits);
            done += fits;
        }
    }

    fn read(&self, index: u32, bytes: &mut [u8]) {
        self.parts(index, bytes.len(), |page, at, range| {
            // Both ranges are within bounds as `parts` makes them.
            let _read = bytes
                .get_mut(range)
                .is_some_and(|bytes| page.read(at, bytes));
        });
    }

    fn write(&self, index: u32, bytes: &[u8]) {
        self.parts(index, bytes.len(), |page, at, range| {
            let _written = bytes.get(range).is_some_and(|bytes| page.write(at, bytes));
        });
    }
}
