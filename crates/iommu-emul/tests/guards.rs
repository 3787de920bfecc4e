//! Guards and invalidation on threads (issue "Done when" 4; Linux and QEMU caching-mode bugs): once a wait descriptor has completed,
//! no access uses the old mapping, and nothing ever waits for good.

mod support;

use std::{
    hint,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use support::{SECOND, iotlb_pages, legacy};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemory, Permissions, VolatileMemory};

const PAGE: u64 = 0x5000;
const TARGET: u64 = 0x6000;
const POISON: u64 = 0xdead;

#[test]
fn no_access_through_a_mapping_after_its_invalidation_completed() {
    let guest = legacy();
    let stop = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    thread::scope(|scope| {
        let devices = [(); 2].map(|()| {
            let view = guest.view();
            let (stop, reads) = (&stop, &reads);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let guard = view.memory();
                    let mut slices = guard
                        .get_slices(GuestAddress(PAGE), 8, Permissions::Read)
                        .unwrap();
                    let Some(Ok(slice)) = slices.next() else {
                        continue;
                    };
                    // The slice is used for a while, as by I/O in flight.
                    reads.fetch_add(1, Ordering::Relaxed);
                    for _ in 0..1000 {
                        let word = slice.get_atomic_ref::<AtomicU64>(0).unwrap();
                        assert_ne!(word.load(Ordering::Relaxed), POISON);
                        hint::spin_loop();
                    }
                }
            })
        });
        for round in 1..100 {
            let before = reads.load(Ordering::Relaxed);
            guest
                .memory
                .store(0_u64, GuestAddress(TARGET), Ordering::Relaxed)
                .unwrap();
            guest.map_page(PAGE, TARGET);
            while reads.load(Ordering::Relaxed) == before {
                assert!(devices.iter().all(|device| !device.is_finished()));
                thread::yield_now();
            }
            guest.map(SECOND, 4, PAGE, (1, 0), 3);
            guest.submit_and_wait(&[iotlb_pages(5, PAGE, 0)], round);
            while guest.status() != round {
                thread::yield_now();
            }
            guest
                .memory
                .store(POISON, GuestAddress(TARGET), Ordering::Relaxed)
                .unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Guards that outlive many invalidations, on another thread than the one that entered.
#[test]
fn guards_that_travel() {
    let guest = legacy();
    guest.map_page(PAGE, TARGET);
    let (sender, receiver) = std::sync::mpsc::sync_channel(4);
    thread::scope(|scope| {
        scope.spawn(move || {
            for guard in receiver {
                thread::yield_now();
                drop(guard);
            }
        });
        let view = guest.view();
        for round in 1..100 {
            let guard = view.memory();
            let _: u64 = guard.read_obj(GuestAddress(PAGE)).unwrap();
            let other = guard.clone();
            guest.submit_and_wait(&[iotlb_pages(5, PAGE, 0)], round);
            assert_ne!(guest.status(), round);
            drop(guard);
            sender.send(other).unwrap();
            if round % 3 == 0 {
                while guest.status() != round {
                    thread::yield_now();
                }
            }
        }
        drop(sender);
    });
    assert_eq!(guest.status(), 99);
}
