use std::mem::{discriminant, take};

use crate::dma::Draining;
use crate::spec::invalidation::Wait;

/// What completes when older guards are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiter {
    /// Translation was switched on or off: GSTS.TES.
    Translation(bool),
    /// The context command register: ICC.
    Context,
    /// The IOTLB invalidate register: IVT.
    Iotlb,
    /// The wait descriptor at the queue's head.
    Queue(Wait),
}

/// The guards that are waited for, and who waits. One drain runs at a time; who asks meanwhile is served by the next.
#[derive(Debug, Default)]
pub(super) struct Drain {
    running: bool,
    generations: Vec<Draining>,
    waiters: Vec<Waiter>,
    next: Vec<Waiter>,
}

impl Drain {
    /// Whether a drain runs.
    pub fn running(&self) -> bool {
        self.running
    }

    /// Whether the queue waits.
    pub fn holds_queue(&self) -> bool {
        let queue = |waiter: &Waiter| matches!(waiter, Waiter::Queue(_));
        self.waiters.iter().any(queue) || self.next.iter().any(queue)
    }

    /// Starts a drain; none may run.
    pub fn start(&mut self, generations: Vec<Draining>, waiters: Vec<Waiter>) {
        self.running = true;
        self.generations = generations;
        self.waiters = waiters;
    }

    /// Waits for the next drain. Only the last of a kind counts, so that the guest cannot make the list grow.
    pub fn queue(&mut self, waiter: Waiter) {
        self.next
            .retain(|other| discriminant(other) != discriminant(&waiter));
        self.next.push(waiter);
    }

    /// The queue was switched off: its wait is void.
    pub fn abandon_queue(&mut self) {
        let other = |waiter: &Waiter| !matches!(waiter, Waiter::Queue(_));
        self.waiters.retain(other);
        self.next.retain(other);
    }

    /// Nobody waits any more; the drain that runs goes on.
    pub fn abandon(&mut self) {
        self.waiters.clear();
        self.next.clear();
    }

    /// If the drain that runs is done: who waited for it, and who waits for the next.
    pub fn finish(&mut self) -> Option<(Vec<Waiter>, Vec<Waiter>)> {
        self.generations.retain(|generation| !generation.done());
        if !self.running || !self.generations.is_empty() {
            return None;
        }
        self.running = false;
        Some((take(&mut self.waiters), take(&mut self.next)))
    }
}
