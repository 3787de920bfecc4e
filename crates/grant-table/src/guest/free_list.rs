//! References that are free: a lock-free stack of indices.

use crate::sync::{AtomicU32, AtomicU64, Ordering};

/// The end of the stack.
const END: u32 = u32::MAX;
/// The link of an index that is not in the stack.
const TAKEN: u32 = u32::MAX - 1;

/// A stack of indices, linked by index. The head carries a count of changes, so that a head that came back is not taken for unchanged.
#[derive(Debug)]
pub(super) struct FreeList {
    head: AtomicU64,
    links: Box<[AtomicU32]>,
}

impl FreeList {
    /// Free are the indices from `first` to before `count`.
    pub(super) fn new(first: u32, count: u32) -> Self {
        let link = |index: u32| match index.saturating_add(1) {
            next if index < first || next > count => TAKEN,
            next if next == count => END,
            next => next,
        };
        let head = if first < count { first } else { END };
        Self {
            head: AtomicU64::new(head.into()),
            links: (0..count)
                .map(|index| AtomicU32::new(link(index)))
                .collect(),
        }
    }

    fn link(&self, index: u32) -> Option<&AtomicU32> {
        self.links.get(usize::try_from(index).ok()?)
    }

    pub(super) fn pop(&self) -> Option<u32> {
        let mut head = self.head.load(Ordering::Acquire);
        loop {
            let index = index_of(head);
            let link = self.link(index)?;
            let next = with_index(head, link.load(Ordering::Relaxed));
            match self
                .head
                .compare_exchange_weak(head, next, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => {
                    link.store(TAKEN, Ordering::Relaxed);
                    return Some(index);
                }
                Err(now) => head = now,
            }
        }
    }

    /// False if the index was not taken.
    #[must_use]
    pub(super) fn push(&self, index: u32) -> bool {
        let Some(link) = self.link(index) else {
            return false;
        };
        // Whoever changes the link of a taken index gives it back: only one can.
        if link
            .compare_exchange(TAKEN, END, Ordering::AcqRel, Ordering::Relaxed)
            .is_err()
        {
            return false;
        }
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            link.store(index_of(head), Ordering::Relaxed);
            match self.head.compare_exchange_weak(
                head,
                with_index(head, index),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => head = now,
            }
        }
    }
}

fn index_of(head: u64) -> u32 {
    let [a, b, c, d, ..] = head.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn with_index(head: u64, index: u32) -> u64 {
    (head >> 32).wrapping_add(1) << 32 | u64::from(index)
}
