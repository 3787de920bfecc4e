//! `IN_ORDER` (virtio 1.3 §2.7.9, §2.8.9): chains that are pushed early wait for those popped before them.

use crate::error::Error;
use crate::spec::Features;

/// The chains that were pushed before one that was popped earlier.
pub(super) struct InOrder {
    /// When the chain was popped whose turn it is, counted from 1.
    turn: u64,
    /// Those that wait, by when they were popped. Not more were popped since the turn than there are places, a power of two.
    waiting: Box<[Option<Pushed>]>,
    /// How many they are.
    count: u16,
}

/// A chain, and how it was pushed.
#[derive(Clone, Copy)]
pub(super) struct Pushed {
    pub(super) head: u16,
    pub(super) written: u32,
    /// Its used entry may be left out if another follows: the driver takes it for written completely then.
    pub(super) silent: bool,
}

impl InOrder {
    /// None if the feature was not negotiated.
    pub(super) fn new(features: Features, size: u16) -> Option<Box<Self>> {
        features.contains(Features::IN_ORDER).then(|| {
            Box::new(Self {
                turn: 1,
                waiting: vec![None; usize::from(size).next_power_of_two()].into(),
                count: 0,
            })
        })
    }

    /// Tells whether it is the turn of a chain, and has it wait if not.
    #[inline(always)]
    pub(super) fn passes(&mut self, when: u64, chain: Pushed) -> Result<bool, Error> {
        if when != self.turn {
            self.wait(when, chain)?;
            return Ok(false);
        }
        self.turn += 1;
        Ok(true)
    }

    #[cold]
    fn wait(&mut self, when: u64, chain: Pushed) -> Result<(), Error> {
        let place = self.place(when);
        if place.as_ref().is_none_or(|place| place.is_some()) {
            return Err(Error::NotInFlight(chain.head));
        }
        if let Some(place) = place {
            *place = Some(chain);
            self.count += 1;
        }
        Ok(())
    }

    /// The next chain that waits no longer.
    #[inline(always)]
    pub(super) fn next(&mut self) -> Option<Pushed> {
        if self.count == 0 { None } else { self.resume() }
    }

    #[cold]
    fn resume(&mut self) -> Option<Pushed> {
        let chain = self.place(self.turn)?.take()?;
        self.turn += 1;
        self.count -= 1;
        Some(chain)
    }

    fn place(&mut self, when: u64) -> Option<&mut Option<Pushed>> {
        let mask = self.waiting.len().checked_sub(1)?;
        let index = usize::try_from(when).ok()? & mask;
        self.waiting.get_mut(index)
    }
}
