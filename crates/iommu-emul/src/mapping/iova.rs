use super::PAGE_SIZE;

/// Sizes are rounded up to a power of two of pages, up to 2^40.
const CLASSES: usize = 41;

/// Allocates ranges of I/O virtual addresses in constant time, however many are allocated.
///
/// Each power of two has a stack of free ranges; what no stack has is split from a larger range, or carved from the top of the
/// space. A range is aligned to its size, and never grows together with its neighbours again: a space that was used for one mix of
/// sizes serves the same mix for ever.
#[derive(Debug)]
pub struct IovaAllocator {
    free: Vec<Vec<u64>>,
    /// First page of the space.
    bottom: u64,
    /// The first page above what was never carved.
    top: u64,
}

/// There is no range of the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no I/O virtual addresses left for {pages} pages")]
pub struct IovaExhausted {
    /// How many pages were asked for.
    pub pages: u64,
}

/// The class of a size, or the number of classes if there is none.
#[inline]
fn class(pages: u64) -> usize {
    usize::try_from(
        pages
            .checked_next_power_of_two()
            .unwrap_or(u64::MAX)
            .trailing_zeros(),
    )
    .unwrap_or(CLASSES)
}

impl IovaAllocator {
    /// An allocator of the pages from `first` up to, not including, `end` (addresses; partial pages are left out).
    pub fn new(first: u64, end: u64) -> Self {
        Self {
            free: vec![Vec::new(); CLASSES],
            bottom: first.div_ceil(PAGE_SIZE),
            top: end / PAGE_SIZE,
        }
    }

    /// Allocates `pages` pages and returns the address of the first, aligned to the size rounded up to a power of two.
    #[inline]
    pub fn allocate(&mut self, pages: u64) -> Result<u64, IovaExhausted> {
        let exhausted = IovaExhausted { pages };
        let class = class(pages);
        if pages == 0 || class >= CLASSES {
            return Err(exhausted);
        }
        let page = self
            .pop(class)
            .or_else(|| self.carve(class))
            .or_else(|| self.split(class))
            .ok_or(exhausted)?;
        Ok(page * PAGE_SIZE)
    }

    /// Frees what [`Self::allocate`] returned for the same number of pages.
    #[inline]
    pub fn free(&mut self, address: u64, pages: u64) {
        self.push(class(pages), address / PAGE_SIZE);
    }

    #[inline]
    fn pop(&mut self, class: usize) -> Option<u64> {
        self.free.get_mut(class)?.pop()
    }

    #[inline]
    fn push(&mut self, class: usize, page: u64) {
        if let Some(stack) = self.free.get_mut(class) {
            stack.push(page);
        }
    }

    /// Takes a range from the space that was never used; what alignment leaves over goes to the stacks.
    fn carve(&mut self, class: usize) -> Option<u64> {
        let size = 1 << class;
        let page = self.top.checked_sub(size)? & !(size - 1);
        if page < self.bottom {
            return None;
        }
        let mut rest = page + size;
        while rest < self.top {
            let left = self.top - rest;
            let class = left.ilog2().min(rest.trailing_zeros());
            self.push(usize::try_from(class).ok()?, rest);
            rest += 1 << class;
        }
        self.top = page;
        Some(page)
    }

    /// Splits the smallest free range that is larger.
    fn split(&mut self, class: usize) -> Option<u64> {
        let (larger, page) = (class + 1..CLASSES).find_map(|c| Some((c, self.pop(c)?)))?;
        for class in class..larger {
            self.push(class, page + (1 << class));
        }
        Some(page)
    }
}
