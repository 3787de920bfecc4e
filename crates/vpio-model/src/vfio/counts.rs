use std::sync::atomic::{AtomicU64, Ordering};

/// What a guest did with a device's registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Accesses in all. Each element of a string instruction is one.
    pub accesses: u64,
    /// Those that the model had to see ([`Engine::hooked`](crate::engine::Engine::hooked)).
    pub hooked: u64,
    /// Those that were denied.
    pub denied: u64,
    /// Interrupts that were passed on.
    pub interrupts: u64,
}

/// The same, counting.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub accesses: AtomicU64,
    pub hooked: AtomicU64,
    pub denied: AtomicU64,
    pub interrupts: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Counters {
    pub fn counts(&self) -> Counts {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            accesses: get(&self.accesses),
            hooked: get(&self.hooked),
            denied: get(&self.denied),
            interrupts: get(&self.interrupts),
        }
    }
}
