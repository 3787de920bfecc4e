//! A value that is replaced while others read it: readers pay two plain stores, writers pay a system call.
//!
//! A reader owns a cache line with one word, which says what value it uses: null outside an access. It enters by loading
//! the pointer, storing it there, and looking whether it is still current; nothing orders these steps on the CPU. A writer
//! replaces the pointer, has the kernel execute a full barrier on every thread of the process (`membarrier(2)`, private
//! expedited), and then looks at the readers' words. A reader whose barrier fell before its second look sees the
//! new pointer there and begins again; of one whose barrier fell after it, the store is seen. The old value is freed
//! when no reader that was seen with it shows it any more. Nobody waits: the check is repeated by later
//! writers. (Hazard pointers, M. Michael, IEEE TPDS 15(6), 2004, with the readers' fence moved to the writers.)
//!
//! All unsafe code of the crate is here.

mod primitives;

use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use primitives::{
    AtomicPtr, Ordering, free, heavy_barrier, light_barrier, pause, register_barrier,
};
pub use primitives::{Mutex, lock};

/// What a reader uses, on a cache line that only its reader writes (two lines, as CPUs prefetch them in pairs).
#[repr(align(128))]
struct Slot<T> {
    using: AtomicPtr<T>,
}

/// The readers that used a replaced value at one moment. It is over when none of them does any more.
pub struct Grace<T>(Arc<[Seen<T>]>);

/// A reader and what it used.
type Seen<T> = (Arc<Slot<T>>, *const T);

// SAFETY: the pointers are compared, never followed.
unsafe impl<T> Send for Grace<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Grace<T> {}

impl<T> Clone for Grace<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Grace<T> {
    /// Whether none of them does.
    pub fn is_over(&self) -> bool {
        // Acquire: what the reader did inside happened before what we do now (pairs with the stores in
        // `Guard::drop` and `Reader::enter`).
        self.0
            .iter()
            .all(|(slot, seen)| slot.using.load(Ordering::Acquire).cast_const() != *seen)
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
        unsafe { free(self.0.as_ptr()) };
    }
}

/// Values that no reader uses any more. Drop it where no lock is held: the values' own drop may call anything.
#[must_use = "dropping it runs foreign code"]
pub struct Garbage<T>(#[expect(dead_code, reason = "held to be dropped")] Vec<Replaced<T>>);

struct Readers<T> {
    slots: Vec<Arc<Slot<T>>>,
    /// Oldest first. The grace of a later one covers those of all before it.
    replaced: VecDeque<(Replaced<T>, Grace<T>)>,
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
            using: AtomicPtr::new(ptr::null_mut()),
        });
        lock(&self.readers).slots.push(Arc::clone(&slot));
        Reader {
            published: Arc::clone(self),
            slot,
        }
    }

    /// Replaces the value: accesses that begin after this see `value`. The grace covers those that may still see an
    /// older one.
    ///
    /// On error the value has been replaced all the same, and the old one is never freed: without a barrier nobody can
    /// tell who uses it.
    pub fn publish(&self, value: T) -> io::Result<Grace<T>> {
        let new = Box::into_raw(Box::new(value));
        let mut readers = lock(&self.readers);
        // Release: a reader that loads the pointer sees what it points to.
        let old = self.current.swap(new, Ordering::AcqRel);
        heavy_barrier()?;
        let inside = readers.slots.iter().filter_map(|slot| {
            let using = slot.using.load(Ordering::Acquire).cast_const();
            (!using.is_null() && !ptr::eq(using, new)).then(|| (Arc::clone(slot), using))
        });
        let grace = Grace(inside.collect());
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
        unsafe { free(current) };
    }
}

/// One thread's way to the value.
pub struct Reader<T: Send + Sync> {
    published: Arc<Published<T>>,
    slot: Arc<Slot<T>>,
}

impl<T: Send + Sync> Reader<T> {
    /// Enters an access: the value stays alive and unchanged until the guard is dropped.
    #[inline]
    pub fn enter(&mut self) -> Guard<'_, T> {
        let mut seen = self.published.current.load(Ordering::Relaxed);
        let value = loop {
            // Release: who sees this also sees that our access before this one has ended.
            self.slot.using.store(seen, Ordering::Release);
            light_barrier();
            // Acquire: see what the writer put there.
            let again = self.published.current.load(Ordering::Acquire);
            if ptr::eq(again, seen) {
                break again;
            }
            // Each further round takes one more change of the value.
            seen = again;
        };
        Guard {
            // SAFETY: `current` is never null. What it points to outlives this guard: a writer that replaces it after our
            // last look finds it in our slot, as its barrier comes after our store, and keeps it until we store
            // something else there, which takes a guard that is dropped or forgotten. One that replaced it before our
            // last look has put another pointer there, which we would have seen.
            value: unsafe { &*value },
            slot: &self.slot,
        }
    }
}

impl<T: Send + Sync> Drop for Reader<T> {
    fn drop(&mut self) {
        let mut readers = lock(&self.published.readers);
        readers.slots.retain(|slot| !Arc::ptr_eq(slot, &self.slot));
    }
}

/// An access in progress.
pub struct Guard<'a, T> {
    value: &'a T,
    slot: &'a Slot<T>,
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
        // Release: everything done inside happened before whoever sees this.
        self.slot.using.store(ptr::null_mut(), Ordering::Release);
    }
}
