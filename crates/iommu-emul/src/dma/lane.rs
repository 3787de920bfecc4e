use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// Counts the guards of one view, by generation, so that an invalidation can wait for the older ones without stopping anybody.
///
/// Guards enter the current generation. An invalidation that finds the other generation drained makes it the current one and is
/// complete when the former has drained; only one waits at a time, so two generations are enough.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(crate) struct Lane {
    current: AtomicUsize,
    guards: [AtomicUsize; 2],
    /// Something that a guard of this lane may have used was invalidated since the last drain started.
    dirty: AtomicBool,
}

/// The generation that a guard entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entered(usize);

impl Lane {
    fn count(&self, generation: usize) -> &AtomicUsize {
        let [even, odd] = &self.guards;
        if generation & 1 == 0 { even } else { odd }
    }

    /// Enters the current generation. `undo` is told if the lane drained because of an entry that was taken back.
    pub fn enter(&self, drained: impl Fn()) -> Entered {
        loop {
            let generation = self.current.load(Ordering::SeqCst);
            self.count(generation).fetch_add(1, Ordering::SeqCst);
            if self.current.load(Ordering::SeqCst) == generation {
                return Entered(generation);
            }
            // A drain started in between: it may have seen this guard, which has not looked at anything yet.
            if self.leave(Entered(generation)) {
                drained();
            }
        }
    }

    /// Counts one more guard in the generation of a guard that lives.
    pub fn enter_with(&self, entered: Entered) {
        self.count(entered.0).fetch_add(1, Ordering::SeqCst);
    }

    /// Leaves a generation; whether it has drained by that.
    pub fn leave(&self, entered: Entered) -> bool {
        self.count(entered.0).fetch_sub(1, Ordering::SeqCst) == 1
    }

    /// Notes that what guards have used is no longer valid.
    pub fn soil(&self) {
        self.dirty.store(true, Ordering::SeqCst);
    }

    /// Starts a new generation if something was invalidated, and tells which one must drain; `None` if there is no reason or
    /// nobody to wait for. The last generation that this returned must have drained.
    pub fn turn(self: &Arc<Self>) -> Option<Draining> {
        if !self.dirty.swap(false, Ordering::SeqCst) {
            return None;
        }
        let old = self.current.fetch_xor(1, Ordering::SeqCst);
        let draining = Draining {
            lane: Arc::clone(self),
            generation: old,
        };
        (!draining.done()).then_some(draining)
    }
}

/// A generation of a lane that an invalidation waits for.
#[derive(Debug)]
pub(crate) struct Draining {
    lane: Arc<Lane>,
    generation: usize,
}

impl Draining {
    /// Whether no guard of the generation is left.
    pub fn done(&self) -> bool {
        self.lane.count(self.generation).load(Ordering::SeqCst) == 0
    }
}
