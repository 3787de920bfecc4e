//! A value that is replaced while others read it: readers pay two plain stores, writers pay a system call.
//!
//! A reader owns a cache line with one word, its *activity*: odd while it is inside an access, even outside. It enters
//! by storing an odd value it never stored before and then loading the pointer; nothing orders the two on the CPU. A
//! writer replaces the pointer, has the kernel execute a full barrier on every thread of the process
//! (`membarrier(2)`, private expedited), and then looks at the activities. A reader whose barrier fell before its
//! store will load the new pointer; one whose barrier fell after is seen inside. The old value is freed when each
//! reader that was seen inside shows another activity. Nobody waits: the check is repeated by later writers.
//!
//! All unsafe code of the crate is here.

mod primitives;

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use primitives::{
    AtomicPtr, AtomicU64, Ordering, heavy_barrier, light_barrier, pause, register_barrier,
};
pub use primitives::{Mutex, lock};

/// A reader's activity, on a cache line that only its reader writes (two lines, as CPUs prefetch them in pairs).
#[repr(align(128))]
struct Slot {
    activity: AtomicU64,
}

/// The readers that were inside an access at one moment. It is over when each of them has left that access.
#[derive(Clone)]
pub struct Grace(Arc<[(Arc<Slot>, u64)]>);

impl Grace {
    /// Whether all those readers have left.
    pub fn is_over(&self) -> bool {
        // Acquire: what the reader did inside happened before what we do now (pairs with the store in `Guard::drop`).
        self.0
            .iter()
            .all(|(slot, seen)| slot.activity.load(Ordering::Acquire) != *seen)
    }

    /// Returns when it is over: never, if called from inside one of those accesses.
    pub fn wait(&self) {
        let mut round = 0;
        while !self.is_over() {
            pause(round);
            round = round.saturating_add(1);
        }
    }
}

/// A value that was replaced. It came from a `Box` and is freed when this is dropped.
struct Replaced<T>(NonNull<T>);

// SAFETY: a `Replaced` owns its `T` as a `Box` does.
unsafe impl<T: Send> Send for Replaced<T> {}

impl<T> Drop for Replaced<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::into_raw` and is owned by this value alone. Whoever drops it has seen
        // that no reader uses it (`Published::collect`) or can (a dropped `Published`, to which each reader holds a
        // reference).
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// Values that no reader uses any more. Drop it where no lock is held: the values' own drop may call anything.
#[must_use = "dropping it runs foreign code"]
pub struct Garbage<T>(#[expect(dead_code, reason = "held to be dropped")] Vec<Replaced<T>>);

struct Readers<T> {
    slots: Vec<Weak<Slot>>,
    /// Oldest first. The grace of a later one covers those of all before it.
    replaced: VecDeque<(Replaced<T>, Grace)>,
}

/// A value that can be replaced while it is read.
pub struct Published<T: Send + Sync> {
    current: AtomicPtr<T>,
    readers: Mutex<Readers<T>>,
    owns: PhantomData<T>,
}

impl<T: Send + Sync> Published<T> {
    /// Publishes the first value. Fails where the kernel has no private expedited `membarrier`.
    pub fn new(value: T) -> io::Result<Arc<Self>> {
        register_barrier()?;
        Ok(Arc::new(Self {
            current: AtomicPtr::new(Box::into_raw(Box::new(value))),
            readers: Mutex::new(Readers {
                slots: Vec::new(),
                replaced: VecDeque::new(),
            }),
            owns: PhantomData,
        }))
    }

    /// A new reader, outside any access.
    pub fn reader(self: &Arc<Self>) -> Reader<T> {
        let slot = Arc::new(Slot {
            activity: AtomicU64::new(0),
        });
        lock(&self.readers).slots.push(Arc::downgrade(&slot));
        Reader {
            published: Arc::clone(self),
            slot,
            activity: 0,
        }
    }

    /// Replaces the value: accesses that begin after this see `value`. The grace covers those that may still see an
    /// older one.
    ///
    /// On error the value has been replaced all the same, and the old one is never freed: without a barrier nobody can
    /// tell who uses it.
    pub fn publish(&self, value: T) -> io::Result<Grace> {
        let value = Box::into_raw(Box::new(value));
        let mut readers = lock(&self.readers);
        // Release: a reader that loads the pointer sees what it points to.
        let old = self.current.swap(value, Ordering::AcqRel);
        heavy_barrier()?;
        let mut inside = Vec::new();
        readers.slots.retain(|slot| {
            // A reader that is gone is outside.
            let Some(slot) = slot.upgrade() else {
                return false;
            };
            let activity = slot.activity.load(Ordering::Acquire);
            if activity % 2 == 1 {
                inside.push((slot, activity));
            }
            true
        });
        let grace = Grace(inside.into());
        if let Some(old) = NonNull::new(old) {
            readers.replaced.push_back((Replaced(old), grace.clone()));
        }
        Ok(grace)
    }

    /// Takes out the replaced values that no reader uses any more.
    pub fn collect(&self) -> Garbage<T> {
        let mut readers = lock(&self.readers);
        let mut garbage = Vec::new();
        while let Some((value, grace)) = readers.replaced.pop_front() {
            if !grace.is_over() {
                readers.replaced.push_front((value, grace));
                break;
            }
            garbage.push(value);
        }
        Garbage(garbage)
    }
}

impl<T: Send + Sync> Drop for Published<T> {
    fn drop(&mut self) {
        let current = self.current.load(Ordering::Acquire);
        // SAFETY: the pointer came from `Box::into_raw`. Each reader holds a reference to this, so none is left, and
        // `readers` owns the replaced values only.
        drop(unsafe { Box::from_raw(current) });
    }
}

/// One thread's way to the value.
pub struct Reader<T: Send + Sync> {
    published: Arc<Published<T>>,
    slot: Arc<Slot>,
    /// What `slot` holds; only this reader stores there.
    activity: u64,
}

impl<T: Send + Sync> Reader<T> {
    /// Enters an access: the value stays alive and unchanged until the guard is dropped.
    #[inline]
    pub fn enter(&mut self) -> Guard<'_, T> {
        // The next odd number, also when a guard was forgotten.
        self.activity = self.activity.wrapping_add(1) | 1;
        self.slot.activity.store(self.activity, Ordering::Relaxed);
        light_barrier();
        // Acquire: see what the writer put there.
        let value = self.published.current.load(Ordering::Acquire);
        Guard {
            // SAFETY: `current` is never null, and what it points to outlives this guard: a writer that replaces it
            // either finds our odd activity after its barrier and keeps the value until we store another one, or its
            // barrier came before our store, and then the load above saw the new pointer.
            value: unsafe { &*value },
            slot: &self.slot,
            activity: &mut self.activity,
        }
    }
}

/// An access in progress.
pub struct Guard<'a, T> {
    value: &'a T,
    slot: &'a Slot,
    activity: &'a mut u64,
}

impl<T> Deref for Guard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        self.value
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        *self.activity = self.activity.wrapping_add(1);
        // Release: everything done inside happened before whoever sees this.
        self.slot.activity.store(*self.activity, Ordering::Release);
    }
}
