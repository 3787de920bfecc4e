//! `IN_ORDER` (virtio 1.3 §2.7.9, §2.8.11): chains that are pushed early wait for those popped before them.

use std::collections::VecDeque;

use crate::spec::Features;

/// The chains that were popped and not written to the ring.
pub(super) struct InOrder {
    /// Their heads, oldest first.
    heads: VecDeque<u16>,
    /// For each head, the length it was pushed with.
    written: Box<[Option<u32>]>,
}

impl InOrder {
    /// None if the feature was not negotiated.
    pub(super) fn new(features: Features, size: u16) -> Option<Self> {
        features.contains(Features::IN_ORDER).then(|| Self {
            heads: VecDeque::new(),
            written: vec![None; usize::from(size)].into(),
        })
    }

    /// A chain was popped.
    pub(super) fn begin(&mut self, head: u16) {
        self.heads.push_back(head);
    }

    /// A chain was pushed. False if it had been already.
    pub(super) fn end(&mut self, head: u16, written: u32) -> bool {
        self.written
            .get_mut(usize::from(head))
            .is_some_and(|slot| slot.replace(written).is_none())
    }

    /// The next chain to be written to the ring, if it was pushed.
    pub(super) fn next(&mut self) -> Option<(u16, u32)> {
        let head = *self.heads.front()?;
        let written = self.written.get_mut(usize::from(head))?.take()?;
        self.heads.pop_front();
        Some((head, written))
    }
}
