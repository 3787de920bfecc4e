//! A simulated network card that frames arrive at, and its driver. The card's engine and, in that arm, the sidecore share a thread.

use std::hint;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use iommu_emul::dma::DmaView;
use iommu_emul::mapping::Strategy;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, Permissions};

use crate::machine::{Arm, Exits, Machine, Memory, buffer};
use crate::median;

/// Bytes of a frame, and buffers that the driver posts ahead.
const FRAME: usize = 1500;
const RING: usize = 64;
/// How often the shares are taken, the first not kept. Of the windows in which both threads ran, what counts is the one that one in ten is
/// better than.
const WINDOW: Duration = Duration::from_millis(2);
const WINDOWS: usize = 801;

/// A pause of a thread that is this long was the scheduler's.
const PREEMPTED: Duration = Duration::from_micros(200);

/// Buffers on their way: an address with [`READY`], or [`DONE`].
type Ring = [AtomicU64; RING];
const READY: u64 = 1;
const DONE: u64 = 2;

/// The time between two frames.
#[derive(Clone, Copy)]
pub struct Rate(Duration);

impl Rate {
    /// That at which the driver is busy half the time without an IOMMU.
    pub fn calibrated() -> Self {
        // Frames that are always there: the driver waits only if the engine is the slower of both.
        let run = Run::new(Arm::BARE, None, Self(Duration::ZERO));
        Self(Duration::from_secs_f64(2.0 * run.driver_seconds))
    }

    pub fn per_second(self) -> f64 {
        (1.0 / self.0.as_secs_f64()).round()
    }
}

/// What a strategy reached.
pub struct Reached {
    /// Frames that had a buffer, of those that arrived: 0 to 1.
    pub share: f64,
    /// The sidecore's time with work to do, 0 to 1.
    pub busy: f64,
    /// Exits of one frame.
    pub exits: f64,
}

/// Has frames arrive at `rate`; without a strategy the unit translates nothing.
pub fn frames(arm: Arm, strategy: Option<Strategy>, rate: Rate) -> Reached {
    let mut run = Run::new(arm, strategy, rate);
    let expected = WINDOW.as_secs_f64() / rate.0.as_secs_f64();
    run.windows
        .retain(|window| !window.alone && window.arrived as f64 > 0.9 * expected);
    run.windows
        .sort_unstable_by(|a, b| b.share().total_cmp(&a.share()));
    // A machine that is so busy that there is none has nothing to show.
    let best = run.windows.get(run.windows.len() / 10);
    Reached {
        share: best.map_or(0.0, Window::share),
        busy: best.map_or(0.0, Window::busy),
        exits: run.exits,
    }
}

struct Run {
    windows: Vec<Window>,
    /// Of one frame, without waiting for it.
    driver_seconds: f64,
    exits: f64,
}

impl Run {
    fn new(arm: Arm, strategy: Option<Strategy>, rate: Rate) -> Self {
        let machine = Machine::new(strategy.is_some());
        let ring = [const { AtomicU64::new(0) }; RING];
        let signals = Signals::default();
        let exits = Exits::default();
        thread::scope(|scope| {
            let engine = scope.spawn(|| engine(&machine, arm, &ring, rate.0, &signals));
            let (frames, rounds) = driver(&machine, arm, strategy, &ring, &signals, &exits);
            signals.here.store(true, Ordering::Relaxed);
            Self {
                windows: engine.join().unwrap(),
                driver_seconds: median(rounds) / RING as f64,
                exits: exits.get() as f64 / frames as f64,
            }
        })
    }
}

/// What the threads tell each other besides frames.
#[derive(Default)]
struct Signals {
    /// Changes while the driver runs.
    beat: AtomicU64,
    /// No more frames.
    near: AtomicBool,
    /// The driver waits for nothing any more.
    here: AtomicBool,
}

/// A part of the time.
#[derive(Default)]
struct Window {
    arrived: u64,
    received: u64,
    busy: Duration,
    /// Whether the driver did not run all the time.
    alone: bool,
}

impl Window {
    fn share(&self) -> f64 {
        self.received as f64 / self.arrived as f64
    }

    fn busy(&self) -> f64 {
        self.busy.as_secs_f64() / WINDOW.as_secs_f64()
    }
}

/// Fills the next buffer with each frame that arrives, if the driver has posted one, and polls the unit; stops the driver at the end.
fn engine(
    machine: &Machine,
    arm: Arm,
    ring: &Ring,
    period: Duration,
    signals: &Signals,
) -> Vec<Window> {
    let view = machine.view();
    let mut polled = machine.polled(arm);
    let mut slots = ring.iter().cycle().peekable();
    let mut windows = vec![Window::default()];
    let start = Instant::now();
    let mut due = Duration::ZERO;
    let mut last = Duration::ZERO;
    let patience = match arm {
        Arm::Call { exit } => PREEMPTED + exit * u32::try_from(RING).unwrap(),
        Arm::Sidecore => PREEMPTED,
    };
    let mut beat = (Duration::ZERO, 0);
    loop {
        let now = start.elapsed();
        if now - last > PREEMPTED {
            due += now - last;
        }
        last = now;
        if now >= WINDOW * u32::try_from(windows.len()).unwrap() {
            windows.push(Window::default());
        }
        if windows.len() > WINDOWS {
            break;
        }
        let window = windows.last_mut().unwrap();
        let current = signals.beat.load(Ordering::Relaxed);
        if current != beat.1 {
            beat = (now, current);
        }
        window.alone |= now - beat.0 > patience;
        if let Some(polled) = &mut polled
            && polled.poll() > 0
        {
            window.busy += start.elapsed() - now;
        }
        while due <= now {
            window.arrived += 1;
            if slots.next_if(|slot| receive(&view, slot)).is_some() {
                window.received += 1;
            }
            due += period;
            if period.is_zero() {
                break;
            }
        }
    }
    signals.near.store(true, Ordering::Relaxed);
    while !signals.here.load(Ordering::Relaxed) {
        if let Some(polled) = &mut polled {
            polled.poll();
        }
    }
    windows.pop();
    windows.split_off(1)
}

/// Whether the buffer was there for the frame.
fn receive(view: &DmaView<Memory>, slot: &AtomicU64) -> bool {
    let word = slot.load(Ordering::Acquire);
    if word & READY == 0 {
        return false;
    }
    let address = GuestAddress(word & !READY);
    view.memory().write_slice(&[0x5a; FRAME], address).unwrap();
    slot.store(DONE, Ordering::Release);
    true
}

/// Posts buffers and takes frames until it is stopped; returns how many, and for each time around the ring
/// the seconds in which it did not wait.
fn driver(
    machine: &Machine,
    arm: Arm,
    strategy: Option<Strategy>,
    ring: &Ring,
    signals: &Signals,
    exits: &Exits,
) -> (u64, Vec<f64>) {
    let mut mapper = strategy.map(|strategy| machine.mapper(arm, strategy, exits));
    let mut posted = [0; RING];
    let mut rounds = Vec::new();
    let start = Instant::now();
    let (mut round, mut waited) = (start, Duration::ZERO);
    let mut beats = 0_u64;
    let mut beat = || {
        beats += 1;
        // Seldom enough that the engine mostly finds it in its cache.
        if beats.is_multiple_of(16) {
            signals.beat.store(beats, Ordering::Relaxed);
        }
    };
    let mut n = 0;
    for index in (0..RING).cycle() {
        let (slot, posted) = (ring.get(index).unwrap(), posted.get_mut(index).unwrap());
        if n >= RING as u64 {
            if slot.load(Ordering::Acquire) != DONE {
                let before = Instant::now();
                while slot.load(Ordering::Acquire) != DONE {
                    if signals.near.load(Ordering::Relaxed) {
                        return (n, rounds);
                    }
                    beat();
                    hint::spin_loop();
                }
                waited += before.elapsed();
            }
            if let Some(mapper) = &mut mapper {
                mapper.unmap(*posted).unwrap();
            }
            consume(&machine.memory, n - RING as u64);
        }
        let page = buffer(n);
        *posted = match &mut mapper {
            Some(mapper) => mapper.map(page, Permissions::Write).unwrap(),
            None => page.address,
        };
        slot.store(*posted | READY, Ordering::Release);
        if index == RING - 1 {
            let now = Instant::now();
            rounds.push((now - round).saturating_sub(waited).as_secs_f64());
            (round, waited) = (now, Duration::ZERO);
            if let Some(mapper) = &mut mapper {
                mapper.tick(now - start).unwrap();
            }
        }
        beat();
        n += 1;
    }
    (n, rounds)
}

/// What a driver's user does with a frame: copies it and looks at each byte.
fn consume(memory: &Memory, n: u64) {
    let mut frame = [0; FRAME];
    let address = GuestAddress(buffer(n).address);
    memory.read_slice(&mut frame, address).unwrap();
    let sum: u32 = frame.iter().map(|byte| u32::from(*byte)).sum();
    hint::black_box(sum);
}
