use std::{
    fmt, io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::PolledUnit;
use crate::vtd::PhysicalMemory;

/// How a sidecore waits when there is nothing to do: it polls at once again, then yields, then sleeps twice as long each time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// How many polls without work in a row go without a pause.
    pub spins: u32,
    /// How many after that yield to other threads.
    pub yields: u32,
    /// The longest sleep: what a guest waits at most, apart from the scheduler. Zero never sleeps.
    pub longest_sleep: Duration,
}

impl Default for Backoff {
    /// Fit for a core of its own that is wanted back when the guest rests.
    fn default() -> Self {
        Self {
            spins: 10_000,
            yields: 1000,
            longest_sleep: Duration::from_micros(200),
        }
    }
}

/// What a sidecore did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Looks at all units.
    pub polls: u64,
    /// Looks that found work.
    pub busy_polls: u64,
    /// Register writes that were carried out.
    pub writes: u64,
    /// Time in looks that found work.
    pub busy: Duration,
    /// The longest of them: how long a guest waited for the emulation itself.
    pub longest_busy: Duration,
    /// Time asleep.
    pub asleep: Duration,
    /// Time since the start.
    pub elapsed: Duration,
}

impl Counters {
    /// The share of time that was work, 0 to 1.
    pub fn busy_share(&self) -> f64 {
        if self.elapsed.is_zero() {
            0.0
        } else {
            self.busy.as_secs_f64() / self.elapsed.as_secs_f64()
        }
    }
}

/// A thread that emulates any number of units of any number of guests. Dropping it stops the thread.
pub struct Sidecore {
    shared: Arc<Shared>,
    started: Instant,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// Units that wait for the thread to take them in.
    attached: Mutex<Vec<Box<dyn Polled>>>,
    waiting: AtomicBool,
    polls: AtomicU64,
    busy_polls: AtomicU64,
    writes: AtomicU64,
    busy: AtomicU64,
    longest_busy: AtomicU64,
    asleep: AtomicU64,
}

trait Polled: Send {
    fn poll(&mut self) -> usize;
}

impl<M: PhysicalMemory, S: PhysicalMemory> Polled for PolledUnit<M, S> {
    fn poll(&mut self) -> usize {
        PolledUnit::poll(self)
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

impl Sidecore {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// If the operating system has no thread.
    pub fn start(backoff: Backoff) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new()
            .name("iommu-sidecore".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.run(backoff)
            })?;
        Ok(Self {
            shared,
            started: Instant::now(),
            thread: Some(thread),
        })
    }

    /// Polls `unit` from now on.
    pub fn attach<M: PhysicalMemory, S: PhysicalMemory>(&self, unit: PolledUnit<M, S>) {
        self.shared
            .attached
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Box::new(unit));
        self.shared.waiting.store(true, Ordering::Release);
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let time = |counter| Duration::from_nanos(load(counter));
        let shared = &self.shared;
        Counters {
            polls: load(&shared.polls),
            busy_polls: load(&shared.busy_polls),
            writes: load(&shared.writes),
            busy: time(&shared.busy),
            longest_busy: time(&shared.longest_busy),
            asleep: time(&shared.asleep),
            elapsed: self.started.elapsed(),
        }
    }
}

impl Drop for Sidecore {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic there was reported there.
            let _panicked = thread.join();
        }
    }
}

impl fmt::Debug for Sidecore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sidecore")
            .field("counters", &self.counters())
            .finish_non_exhaustive()
    }
}

impl Shared {
    fn run(&self, backoff: Backoff) {
        let add = |counter: &AtomicU64, n: u64| {
            // The only writer: no locked instruction.
            counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        };
        let mut units: Vec<Box<dyn Polled>> = Vec::new();
        let mut idle = 0_u32;
        let mut sleep = Duration::from_micros(1);
        while !self.stop.load(Ordering::Acquire) {
            if self.waiting.swap(false, Ordering::AcqRel) {
                let mut attached = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
                units.append(&mut attached);
            }
            let mut started = None;
            let mut writes = 0;
            for unit in &mut units {
                let before = started.is_none().then(Instant::now);
                let found = unit.poll();
                if found > 0 {
                    started = started.or(before);
                    writes += found;
                }
            }
            add(&self.polls, 1);
            if let Some(started) = started {
                let busy = nanoseconds(started.elapsed());
                add(&self.busy_polls, 1);
                add(&self.writes, u64::try_from(writes).unwrap_or(u64::MAX));
                add(&self.busy, busy);
                self.longest_busy.fetch_max(busy, Ordering::Relaxed);
                idle = 0;
                sleep = Duration::from_micros(1);
                continue;
            }
            idle = idle.saturating_add(1);
            if idle <= backoff.spins {
                std::hint::spin_loop();
            } else if idle - backoff.spins <= backoff.yields || backoff.longest_sleep.is_zero() {
                thread::yield_now();
            } else {
                let before = Instant::now();
                thread::sleep(sleep.min(backoff.longest_sleep));
                add(&self.asleep, nanoseconds(before.elapsed()));
                sleep = (sleep * 2).min(backoff.longest_sleep);
            }
        }
    }
}
