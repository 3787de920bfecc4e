//! Strict map + unmap of one page.

use std::hint;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

use iommu_emul::mapping::{AlwaysResident, Invalidator, Mapper, PageRange, SecondStageTables};
use iommu_emul::mapping::{Strategy, Ticket};
use vm_memory::Permissions;

use crate::machine::{Arm, Exits, Machine, Memory, buffer};
use crate::median;

/// What is timed at once, and how often.
const BATCH: u64 = 50;
const BATCHES: u64 = 2000;

/// Nanoseconds and exits of one map + unmap.
pub fn map_unmap(arm: Arm) -> (f64, f64) {
    let exits = Exits::default();
    let machine = Machine::new(true);
    let mut polled = machine.polled(arm);
    let (started, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let time = thread::scope(|scope| {
        // In the other arms this thread does nothing, so that all have the same neighbour.
        scope.spawn(|| {
            started.store(true, Ordering::Release);
            while !stop.load(Ordering::Relaxed) {
                match &mut polled {
                    Some(polled) => {
                        polled.poll();
                    }
                    None => hint::spin_loop(),
                }
            }
        });
        while !started.load(Ordering::Acquire) {
            hint::spin_loop();
        }
        let time = timed(&mut machine.mapper(arm, Strategy::Strict, &exits));
        stop.store(true, Ordering::Relaxed);
        time
    });
    (time, exits.get() as f64 / (BATCH * BATCHES) as f64)
}

/// Nanoseconds of the driver's own part of it: with a unit that has no cache to invalidate.
pub fn logic() -> f64 {
    timed(&mut Machine::new(true).mapper_with(Uncached, Strategy::Strict))
}

struct Uncached;

impl Invalidator for Uncached {
    fn invalidate(&self, _: Option<PageRange>) -> Ticket {
        Ticket(0)
    }

    fn done(&self, _: Ticket) -> bool {
        true
    }
}

fn timed<I: Invalidator>(mapper: &mut Mapper<SecondStageTables<Memory, I>, AlwaysResident>) -> f64 {
    let batches = (0..BATCHES).map(|_| {
        let start = Instant::now();
        for n in 0..BATCH {
            let iova = mapper.map(buffer(n), Permissions::ReadWrite).unwrap();
            mapper.unmap(iova).unwrap();
        }
        start.elapsed().as_secs_f64() * 1e9 / BATCH as f64
    });
    median(batches.collect())
}
