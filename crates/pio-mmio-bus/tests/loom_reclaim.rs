//! The reclamation protocol in all interleavings, and all reorderings that the memory model allows.
//! Not covered: that an address is used again. A reader compares pointers only to see that its table is the current one, and
//! a writer to see that it is not in use: an address that came back names a table that is current, or delays.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p pio-mmio-bus --release --test loom_reclaim`.
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "test code")]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;
use pio_mmio_bus::bus::{AccessError, AddressSpace, Bus, BusDevice, Outcome};

/// A device whose accesses and drop loom watches: they must never race.
struct Watched(UnsafeCell<u8>);

// SAFETY: that accesses, which only read, and the drop, which writes, do not race is what is tested.
unsafe impl Sync for Watched {}

impl BusDevice for Watched {
    fn read(&self, _: u64, data: &mut [u8]) -> Result<(), AccessError> {
        // SAFETY: loom fails the test if this races with the write in `drop`.
        self.0.with(|byte| data.fill(unsafe { *byte }));
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), AccessError> {
        self.read(0, &mut [0])
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // SAFETY: as above.
        self.0.with_mut(|byte| unsafe { *byte = 0xee });
    }
}

/// Tries all interleavings with at most three preemptions.
fn check(model: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn watched() -> Arc<Watched> {
    Arc::new(Watched(UnsafeCell::new(7)))
}

#[test]
fn a_device_is_not_freed_while_it_is_accessed() {
    check(|| {
        let bus = Bus::new(AddressSpace::Mmio).unwrap();
        let id = bus.insert(0, 8, "watched", watched()).unwrap();
        let mut reader = bus.reader();
        let vcpu = thread::spawn(move || {
            let mut data = [0];
            match reader.read(0, &mut data) {
                Outcome::Done => assert_eq!(data, [7]),
                outcome => assert_eq!((outcome, data), (Outcome::Unclaimed, [0xff])),
            }
        });
        bus.remove(id).unwrap().wait();
        vcpu.join().unwrap();
    });
}

#[test]
fn nothing_is_freed_early_when_the_bus_changes_twice() {
    check(|| {
        let bus = Bus::new(AddressSpace::Mmio).unwrap();
        let id = bus.insert(0, 8, "watched", watched()).unwrap();
        let mut reader = bus.reader();
        let vcpu = thread::spawn(move || {
            for _ in 0..2 {
                let _ = reader.read(0, &mut [0]);
            }
        });
        // Nobody waits: the second change frees what it can.
        let _ = bus.remove(id).unwrap();
        bus.insert(0, 8, "watched", watched()).unwrap();
        vcpu.join().unwrap();
    });
}

#[test]
fn two_writers_and_a_reader() {
    check(|| {
        let bus = Bus::new(AddressSpace::Mmio).unwrap();
        let first = bus.insert(0, 8, "first", watched()).unwrap();
        let second = bus.insert(8, 8, "second", watched()).unwrap();
        let mut reader = bus.reader();
        let vcpu = thread::spawn(move || {
            let _ = reader.read(0, &mut [0]);
            let _ = reader.read(8, &mut [0]);
        });
        let other = {
            let bus = bus.clone();
            thread::spawn(move || drop(bus.remove(second).unwrap()))
        };
        let _ = bus.remove(first).unwrap();
        other.join().unwrap();
        vcpu.join().unwrap();
    });
}
