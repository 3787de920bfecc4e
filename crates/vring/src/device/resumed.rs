//! Chains that are popped again: those in flight in a saved state, and those that the device put back.

/// Their heads.
#[derive(Default)]
pub(super) struct Resumed {
    /// The next to be popped last; those put back above those of the saved state.
    heads: Vec<u16>,
    put_back: usize,
}

impl Resumed {
    /// Those of a saved state, oldest first.
    pub(super) fn new(heads: impl DoubleEndedIterator<Item = u16>) -> Self {
        Self {
            heads: heads.rev().collect(),
            put_back: 0,
        }
    }

    pub(super) fn pop(&mut self) -> Option<u16> {
        self.put_back = self.put_back.saturating_sub(1);
        self.heads.pop()
    }

    pub(super) fn put_back(&mut self, head: u16) {
        self.heads.push(head);
        self.put_back += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.heads.is_empty()
    }

    /// Whether there are any that were not put back, which the device has not seen yet.
    pub(super) fn any_new(&self) -> bool {
        self.heads.len() > self.put_back
    }
}
