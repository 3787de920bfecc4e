//! The crate's own code where it is lock-free, in all interleavings and all reorderings that the memory model allows: the files are built
//! here once more, with loom's atomics.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p grant-table --release --test loom`.
#![cfg(loom)]
#![expect(clippy::unwrap_used, reason = "test code")]

use std::sync::Arc;

use loom::cell::UnsafeCell;
use loom::thread;
use sync::{AtomicU16, AtomicU32, Ordering};

/// What the files take from the crate.
mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
}

#[path = "../src/guest/free_list.rs"]
mod free_list;
#[path = "../src/ring/notification.rs"]
mod notification;
#[path = "../src/statuses.rs"]
mod statuses;

use free_list::FreeList;

/// Tries all interleavings with at most three preemptions.
fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// A reference that is taken, given back and taken again (ABA) is never handed out twice.
#[test]
fn a_reference_has_one_owner() {
    check(|| {
        let list = Arc::new(FreeList::new(0, 3));
        let other = Arc::clone(&list);
        let taker = thread::spawn(move || other.pop());
        let (first, second) = (list.pop(), list.pop());
        assert!(first.is_none_or(|index| list.push(index)));
        let mut owned: Vec<_> = [taker.join().unwrap(), second]
            .into_iter()
            .flatten()
            .collect();
        owned.extend(std::iter::from_fn(|| list.pop()).take(3));
        owned.sort_unstable();
        assert_eq!(owned, [0, 1, 2]);
    });
}

/// Version 2: whoever ends a grant and sees it unused has the frame for itself, as the hypervisor looks at the header again behind its
/// mark.
#[test]
fn an_ended_grant_is_not_in_use() {
    const GRANTED: u32 = 1;
    const READING: u16 = 1 << 3;
    struct Entry {
        header: AtomicU32,
        status: AtomicU16,
        frame: UnsafeCell<u8>,
    }
    // SAFETY: that the guest's writing and the hypervisor's reading do not race is what is tested.
    unsafe impl Sync for Entry {}
    check(|| {
        let entry = Arc::new(Entry {
            header: AtomicU32::new(GRANTED),
            status: AtomicU16::new(0),
            frame: UnsafeCell::new(0),
        });
        let guest = Arc::clone(&entry);
        let guest = thread::spawn(move || {
            if statuses::end(&guest.header, &guest.status) == 0 {
                // SAFETY: loom fails the test if this races with the reading.
                guest.frame.with_mut(|byte| unsafe { *byte = 1 });
            }
        });
        if entry.header.load(Ordering::Acquire) == GRANTED {
            if statuses::mark(&entry.header, &entry.status, READING) == GRANTED {
                // SAFETY: as above.
                entry.frame.with(|byte| unsafe { assert_eq!(*byte, 0) });
            }
            statuses::unmark(&entry.status, READING);
        }
        guest.join().unwrap();
    });
}

/// The end of a ring that goes to sleep has seen what the other end published, or is notified of it.
#[test]
fn nothing_is_published_unnoticed() {
    check(|| {
        // The end that consumes was busy: it did not want to be notified of the first.
        let words = Arc::new([AtomicU32::new(0), AtomicU32::new(0)]);
        let front = Arc::clone(&words);
        let front = thread::spawn(move || {
            let [produced, event] = &*front;
            notification::publish(produced, event, 1)
        });
        let [produced, event] = &*words;
        let noticed = notification::finish(produced, event, 0);
        let notified = front.join().unwrap();
        assert!(noticed || notified);
    });
}
