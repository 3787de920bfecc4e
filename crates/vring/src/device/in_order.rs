//! `IN_ORDER` (virtio 1.3 §2.7.9, §2.8.9): chains that are pushed early wait for those popped before them, and a used entry may
//! stand for several.

use std::collections::VecDeque;

use crate::error::Error;
use crate::spec::Features;

/// The chains that were popped and not written to the ring.
pub(super) struct InOrder {
    /// Their heads, oldest first.
    heads: VecDeque<u16>,
    /// For each head, how it was pushed.
    pushed: Box<[Option<Pushed>]>,
}

#[derive(Clone, Copy)]
struct Pushed {
    written: u32,
    silent: bool,
}

impl InOrder {
    /// None if the feature was not negotiated.
    pub(super) fn new(features: Features, size: u16) -> Option<Box<Self>> {
        features.contains(Features::IN_ORDER).then(|| {
            Box::new(Self {
                heads: VecDeque::with_capacity(size.into()),
                pushed: vec![None; usize::from(size)].into(),
            })
        })
    }

    /// A chain was popped.
    pub(super) fn begin(&mut self, head: u16) {
        self.heads.push_back(head);
    }

    /// A chain was pushed, whose used entry may be left out if it is `silent`: the driver takes it for written completely then.
    pub(super) fn end(&mut self, head: u16, written: u32, silent: bool) -> Result<(), Error> {
        let missing = Error::NotInFlight(head);
        let slot = self.pushed.get_mut(usize::from(head)).ok_or(missing)?;
        if slot.is_some() {
            return Err(missing);
        }
        *slot = Some(Pushed { written, silent });
        Ok(())
    }

    /// Takes the next chains for which one used entry may stand, all of which were pushed, shows each to `take`, and returns what the
    /// entry says: the last chain and its length.
    pub(super) fn next_run(&mut self, mut take: impl FnMut(u16)) -> Option<(u16, u32)> {
        let mut run = None;
        while let Some(&head) = self.heads.front()
            && let Some(slot) = self.pushed.get_mut(usize::from(head))
            && let Some(Pushed { written, silent }) = slot.take()
        {
            self.heads.pop_front();
            take(head);
            run = Some((head, written));
            if !silent {
                break;
            }
        }
        run
    }
}
