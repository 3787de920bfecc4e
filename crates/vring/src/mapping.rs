//! All of the crate's unsafe code: guest memory that stays mapped across calls.
//!
//! A [`VolatileSlice`] borrows the guest memory it lies in. Chains in flight and cached rings outlive the call that
//! translated them, so here a slice is stored without its lifetime beside an [`Anchor`], which keeps the memory alive,
//! and is lent again with the lifetime of that pair.

use std::mem::{ManuallyDrop, transmute_copy};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::Rule;
use thiserror::Error;
use vm_memory::bitmap::{BS, Bitmap};
use vm_memory::volatile_memory::PtrGuardMut;
use vm_memory::{
    AtomicInteger, GuestAddress, GuestAddressSpace, GuestMemory, Permissions, VolatileSlice,
};

/// A slice of guest memory, with the memory's own dirty tracking.
pub type Slice<'a, M> = VolatileSlice<'a, BS<'a, <M as GuestMemory>::Bitmap>>;

/// An entered view of guest memory that can be shared and kept: the guard of a [`GuestAddressSpace`], counted.
///
/// Chains popped with a view may be kept as long as the I/O takes, moved to other threads, and completed in any order.
pub struct View<A: GuestAddressSpace>(Arc<A::T>);

impl<A: GuestAddressSpace> View<A> {
    /// Enters `space`.
    pub fn new(space: &A) -> Self {
        // A guard of `GuestMemoryAtomic` occupies one of few per-thread slots; its clone does not, so it may be kept.
        #[expect(clippy::redundant_clone, reason = "the clone is another kind of guard")]
        Self(Arc::new(space.memory().clone()))
    }
}

impl<A: GuestAddressSpace> Clone for View<A> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<A: GuestAddressSpace> Deref for View<A> {
    type Target = A::M;

    fn deref(&self) -> &A::M {
        &self.0
    }
}

impl<A: GuestAddressSpace> std::fmt::Debug for View<A> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

/// What keeps the memory of a chain alive: a plain reference, for chains that are finished within the call, or a
/// [`View`], for chains in flight.
///
/// # Safety
///
/// A reference that `memory` returned once stays valid, wherever the anchor and its clones are moved, until all of them
/// are gone.
pub unsafe trait Anchor: Clone {
    /// The guest memory.
    type Memory: GuestMemory;

    /// Borrows the guest memory.
    fn memory(&self) -> &Self::Memory;
}

// SAFETY: the reference itself guarantees it, for its whole lifetime.
unsafe impl<M: GuestMemory> Anchor for &M {
    type Memory = M;

    fn memory(&self) -> &M {
        self
    }
}

// SAFETY: the guard is in an `Arc`: it does not move, and nobody can borrow it mutably, before the last clone is gone.
unsafe impl<A: GuestAddressSpace> Anchor for View<A> {
    type Memory = A::M;

    fn memory(&self) -> &A::M {
        self
    }
}

/// A slice without its lifetime. It must lie beside the anchor of the memory it was taken from.
struct Erased<M: GuestMemory>(Slice<'static, M>);

impl<M: GuestMemory> Erased<M> {
    fn new(slice: Slice<'_, M>) -> Self {
        let slice = ManuallyDrop::new(slice);
        // SAFETY: source and target are the same type but for a lifetime, so the same in layout; the source is not used
        // again. The lifetime is too long, which `lend` answers for.
        Self(unsafe { transmute_copy(&slice) })
    }

    /// # Safety
    ///
    /// The memory must be borrowed for `'a`.
    unsafe fn lend<'a>(&self) -> Slice<'a, M> {
        let slice = ManuallyDrop::new(self.0.clone());
        // SAFETY: as in `new`, in the other direction; the caller answers for the lifetime.
        unsafe { transmute_copy::<ManuallyDrop<Slice<'static, M>>, Slice<'a, M>>(&slice) }
    }
}

// SAFETY: a slice is a pointer into memory that any thread with access to the anchor could translate again, and a handle
// of the dirty bitmap. The anchor beside it decides whether the pair may move.
unsafe impl<M: GuestMemory> Send for Erased<M> where BS<'static, M::Bitmap>: Send {}
// SAFETY: as above; through a shared reference a slice is only cloned.
unsafe impl<M: GuestMemory> Sync for Erased<M> where BS<'static, M::Bitmap>: Sync {}

/// Room for the segments of a chain, to be used again for another.
pub(crate) struct Storage<M: GuestMemory>(Vec<Erased<M>>);

impl<M: GuestMemory> Default for Storage<M> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// A range of guest memory that cannot be accessed as asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no memory for the access to {len} bytes at {addr:#x}")]
pub struct NoMemory {
    /// First address of the range.
    pub addr: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// Translated buffers in their order, and what keeps them alive.
pub(crate) struct Segments<H: Anchor> {
    list: Vec<Erased<H::Memory>>,
    anchor: H,
}

impl<H: Anchor> Segments<H> {
    pub(crate) fn new(anchor: H, storage: Storage<H::Memory>) -> Self {
        Self {
            list: storage.0,
            anchor,
        }
    }

    /// Appends the slices that make up the range, which must not be empty, as long as there are no more than `limit` in all.
    pub(crate) fn translate(
        &mut self,
        addr: u64,
        len: u32,
        access: Permissions,
        limit: usize,
    ) -> Result<(), Rule> {
        let error = NoMemory {
            addr,
            len: u64::from(len),
        };
        // An `Iotlb` of vm-memory 0.18 does not survive a range at the end of the address space.
        addr.checked_add(u64::from(len)).ok_or(error)?;
        let len = usize::try_from(len).map_err(|_| error)?;
        let slices = self
            .anchor
            .memory()
            .get_slices(GuestAddress(addr), len, access);
        for slice in slices.map_err(|_| error)? {
            if self.list.len() == limit {
                return Err(Rule::Pieces(limit));
            }
            self.list.push(Erased::new(slice.map_err(|_| error)?));
        }
        Ok(())
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn get(&self, index: usize) -> Option<Slice<'_, H::Memory>> {
        // SAFETY: the slice came from the memory of `self.anchor`, which lives as long as the borrow of `self`.
        self.list.get(index).map(|slice| unsafe { slice.lend() })
    }

    pub(crate) fn anchor(&self) -> H {
        self.anchor.clone()
    }

    /// Gives the room back.
    pub(crate) fn into_storage(mut self) -> Storage<H::Memory> {
        self.list.clear();
        Storage(self.list)
    }
}

/// A contiguous piece of a mapped area.
struct Piece<M: GuestMemory> {
    /// Offset of the piece in its area.
    start: usize,
    guard: PtrGuardMut,
    slice: Erased<M>,
}

// SAFETY: as for `Erased`; the guard is a pointer to the same memory.
unsafe impl<M: GuestMemory> Send for Piece<M> where BS<'static, M::Bitmap>: Send {}
// SAFETY: as above; the memory behind the pointer is only accessed atomically.
unsafe impl<M: GuestMemory> Sync for Piece<M> where BS<'static, M::Bitmap>: Sync {}

/// One of the areas that make up a ring, mapped. Its words are loaded and stored atomically, each at once.
///
/// `ALIGN` is the alignment of the area in guest and in host memory; every word up to that size lies in one piece.
pub(crate) struct Area<A: GuestAddressSpace, const ALIGN: usize> {
    first: Piece<A::M>,
    /// The pieces after the first, in order. Empty unless the area is fragmented.
    rest: Box<[Piece<A::M>]>,
    /// Keeps the pieces alive.
    _view: View<A>,
}

impl<A: GuestAddressSpace, const ALIGN: usize> Area<A, ALIGN> {
    /// Maps `len` bytes at `addr`.
    pub(crate) fn map(
        view: &View<A>,
        addr: u64,
        len: usize,
        access: Permissions,
    ) -> Result<Self, NoMemory> {
        let error = NoMemory {
            addr,
            len: len as u64,
        };
        addr.checked_add(len as u64).ok_or(error)?;
        let mut pieces = Vec::new();
        let mut start = 0;
        let slices = view
            .get_slices(GuestAddress(addr), len, access)
            .map_err(|_| error)?;
        for slice in slices {
            let slice = slice.map_err(|_| error)?;
            let guard = slice.ptr_guard_mut();
            let end = start + guard.len();
            if !guard.as_ptr().addr().is_multiple_of(ALIGN)
                || (end < len && !end.is_multiple_of(ALIGN))
            {
                return Err(error);
            }
            pieces.push(Piece {
                start,
                guard,
                slice: Erased::new(slice),
            });
            start = end;
        }
        if start != len {
            return Err(error);
        }
        let mut pieces = pieces.into_iter();
        let first = pieces.next().ok_or(error)?;
        Ok(Self {
            first,
            rest: pieces.collect(),
            _view: view.clone(),
        })
    }

    pub(crate) fn load<T: AtomicInteger>(&self, offset: usize, order: Ordering) -> T::V {
        self.word::<T>(offset).0.load(order)
    }

    /// Stores a word and marks it dirty.
    pub(crate) fn store<T: AtomicInteger>(&self, offset: usize, value: T::V, order: Ordering) {
        let (word, piece) = self.word::<T>(offset);
        word.store(value, order);
        piece
            .slice
            .0
            .bitmap()
            .mark_dirty(offset - piece.start, size_of::<T>());
    }

    /// The word at `offset`, and the piece it lies in. An offset outside the area is a bug of this crate.
    #[inline(always)]
    fn word<T: AtomicInteger>(&self, offset: usize) -> (&T, &Piece<A::M>) {
        const { assert!(size_of::<T>() <= ALIGN && align_of::<T>() == size_of::<T>()) };
        assert!(offset.is_multiple_of(size_of::<T>()), "misaligned word");
        let piece = if offset + size_of::<T>() <= self.first.guard.len() {
            &self.first
        } else {
            self.find(offset)
        };
        assert!(
            offset - piece.start + size_of::<T>() <= piece.guard.len(),
            "word outside the area"
        );
        // SAFETY: the word lies inside the piece and is aligned, both checked above and in `map`. The piece is valid while
        // `_view` is held. `AtomicInteger` promises that any bits are a value and that shared access is sound.
        (
            unsafe { &*piece.guard.as_ptr().add(offset - piece.start).cast::<T>() },
            piece,
        )
    }

    #[cold]
    fn find(&self, offset: usize) -> &Piece<A::M> {
        let index = self.rest.partition_point(|piece| piece.start <= offset);
        index
            .checked_sub(1)
            .and_then(|index| self.rest.get(index))
            .unwrap_or(&self.first)
    }
}
