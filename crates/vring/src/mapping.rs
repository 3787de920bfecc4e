//! All of the crate's unsafe code: guest memory that stays mapped across calls.
//!
//! A [`VolatileSlice`] borrows the guest memory it lies in. Chains in flight and cached rings outlive the call that
//! translated them, so here a slice is stored without its lifetime beside an [`Anchor`], which keeps the memory alive,
//! and is lent again with the lifetime of that pair.

use std::mem::{ManuallyDrop, transmute_copy};
use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use thiserror::Error;
use vm_memory::bitmap::{BS, Bitmap};
use vm_memory::volatile_memory::PtrGuardMut;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryBackend,
    GuestMemoryRegion, Permissions, VolatileSlice,
};

use crate::error::Rule;

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

/// Room for the segments of a chain and what is known about it. It is used again for other chains, so it is in a box, which
/// is all that moves when a chain does.
pub(crate) struct Room<M: GuestMemory, T> {
    list: Vec<Erased<M>>,
    pub(crate) about: T,
}

impl<M: GuestMemory, T: Default> Room<M, T> {
    #[cold]
    pub(crate) fn new() -> Box<Self> {
        Box::new(Self {
            list: Vec::new(),
            about: T::default(),
        })
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

/// Slices of the range, which must not be empty.
fn slices<M: GuestMemory>(
    memory: &M,
    addr: u64,
    len: u64,
    access: Permissions,
) -> Result<impl Iterator<Item = Result<Slice<'_, M>, NoMemory>>, NoMemory> {
    let error = NoMemory { addr, len };
    // An `Iotlb` of vm-memory 0.18 does not survive a range at the end of the address space.
    addr.checked_add(len).ok_or(error)?;
    let len = usize::try_from(len).map_err(|_| error)?;
    let slices = memory
        .get_slices(GuestAddress(addr), len, access)
        .map_err(|_| error)?;
    Ok(slices.map(move |slice| slice.map_err(|_| error)))
}

/// A region of guest memory.
struct Region<M: GuestMemory> {
    start: u64,
    slice: Erased<M>,
}

impl<M: GuestMemory> Region<M> {
    /// The range as a slice, if it lies in the region. It must lie beside an anchor of the region's memory.
    #[inline(always)]
    fn find(&self, addr: u64, len: u32) -> Option<Erased<M>> {
        // What begins before the region has an offset beyond its end.
        let offset = usize::try_from(addr.wrapping_sub(self.start)).ok()?;
        let len = usize::try_from(len).ok()?;
        // Checked here too, so that the compiler sees that what follows cannot fail.
        if offset.checked_add(len)? > self.slice.0.len() {
            return None;
        }
        self.slice.0.subslice(offset, len).ok().map(Erased)
    }
}

/// The regions of a guest memory, so that a buffer is found without asking it. Behind an IOMMU there are none.
pub(crate) struct Regions<A: GuestAddressSpace> {
    list: Box<[Region<A::M>]>,
    /// Index of the region in which the last buffer was.
    hint: AtomicUsize,
    /// Where the memory itself is.
    memory: usize,
    /// Keeps the regions alive.
    _view: View<A>,
}

impl<A: GuestAddressSpace> Regions<A> {
    pub(crate) fn new(view: &View<A>) -> Self {
        let memory: &A::M = view;
        let mut list = Vec::new();
        for region in memory
            .physical_memory()
            .into_iter()
            .flat_map(GuestMemoryBackend::iter)
        {
            let (start, len) = (region.start_addr().raw_value(), region.len());
            if let Ok(mut slices) = slices(memory, start, len, Permissions::ReadWrite)
                && let Some(Ok(slice)) = slices.next()
                && slice.len() as u64 == len
            {
                list.push(Region {
                    start,
                    slice: Erased::new(slice),
                });
            }
        }
        Self {
            list: list.into(),
            hint: AtomicUsize::new(0),
            memory: std::ptr::from_ref(memory).addr(),
            _view: view.clone(),
        }
    }

    /// Whether these are the regions of `memory`.
    #[inline(always)]
    fn are_of(&self, memory: &A::M) -> bool {
        // Both are alive, so if they have the same address they are the same, unless they have no size.
        std::ptr::from_ref(memory).addr() == self.memory && size_of::<A::M>() != 0
    }

    /// The region of `memory` in which the last buffer was.
    #[inline(always)]
    fn last<'r>(&'r self, memory: &A::M) -> Option<&'r Region<A::M>> {
        let region = self.list.get(self.hint.load(Ordering::Relaxed))?;
        self.are_of(memory).then_some(region)
    }

    /// The region of `memory` in which an address is.
    fn search<'r>(&'r self, memory: &A::M, addr: u64) -> Option<&'r Region<A::M>> {
        let contains =
            |region: &Region<A::M>| addr.wrapping_sub(region.start) < region.slice.0.len() as u64;
        let index = self.list.iter().position(contains)?;
        self.hint.store(index, Ordering::Relaxed);
        self.last(memory)
    }
}

/// Translated buffers in their order, and what keeps them alive.
pub(crate) struct Segments<H: Anchor, T> {
    room: Box<Room<H::Memory, T>>,
    anchor: H,
}

impl<H: Anchor, T> Segments<H, T> {
    /// No segments. What is said about them is left from those before.
    #[inline(always)]
    pub(crate) fn new(anchor: H, mut room: Box<Room<H::Memory, T>>) -> Self {
        room.list.clear();
        Self { room, anchor }
    }

    #[inline(always)]
    pub(crate) fn about(&self) -> &T {
        &self.room.about
    }

    #[inline(always)]
    pub(crate) fn about_mut(&mut self) -> &mut T {
        &mut self.room.about
    }

    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.room.list.len()
    }

    #[inline(always)]
    pub(crate) fn get(&self, index: usize) -> Option<Slice<'_, H::Memory>> {
        // SAFETY: the slice came from the memory of `self.anchor`, which lives as long as the borrow of `self`.
        self.room
            .list
            .get(index)
            .map(|slice| unsafe { slice.lend() })
    }

    #[inline(always)]
    pub(crate) fn slices(&self, range: Range<usize>) -> impl Iterator<Item = Slice<'_, H::Memory>> {
        let list = self.room.list.get(range).unwrap_or_default();
        // SAFETY: as in `get`.
        list.iter().map(|slice| unsafe { slice.lend() })
    }

    /// Gives the room back.
    #[inline(always)]
    pub(crate) fn into_room(self) -> Box<Room<H::Memory, T>> {
        self.room
    }
}

/// Segments that are being appended to.
pub(crate) struct Appender<'s, H: Anchor, A: GuestAddressSpace<M = H::Memory>, T> {
    list: &'s mut Vec<Erased<H::Memory>>,
    pub(crate) about: &'s mut T,
    anchor: &'s H,
    regions: &'s Regions<A>,
    /// The region in which the last buffer was, one of the anchor's memory.
    last: Option<&'s Region<H::Memory>>,
}

impl<'s, H: Anchor, A: GuestAddressSpace<M = H::Memory>, T> Appender<'s, H, A, T> {
    #[inline(always)]
    pub(crate) fn new(segments: &'s mut Segments<H, T>, regions: &'s Regions<A>) -> Self {
        let Segments { room, anchor } = segments;
        let Room { list, about } = &mut **room;
        Self {
            list,
            about,
            last: regions.last(anchor.memory()),
            anchor,
            regions,
        }
    }

    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Appends the range, if it is in one of the regions, and tells whether it was.
    #[inline(always)]
    pub(crate) fn append(&mut self, addr: u64, len: u32) -> bool {
        if let Some(region) = self.last
            && let Some(slice) = region.find(addr, len)
        {
            self.list.push(slice);
            return true;
        }
        let memory = self.anchor.memory();
        match append_elsewhere(self.list, self.regions, memory, addr, len) {
            Some(region) => {
                self.last = Some(region);
                true
            }
            None => false,
        }
    }

    /// Appends the slices that make up the range, which must not be empty, as long as there are no more than `limit` in all.
    #[inline(always)]
    pub(crate) fn translate(
        &mut self,
        addr: u64,
        len: u32,
        access: Permissions,
        limit: usize,
    ) -> Result<(), Rule> {
        translate(self.list, self.anchor, addr, len, access, limit)
    }

    /// Maps a table of `len` bytes, a multiple of 16 and not 0.
    #[inline(always)]
    pub(crate) fn table(&mut self, addr: u64, len: u32) -> Result<Table<H>, NoMemory> {
        let anchor = self.anchor.clone();
        if let Some(region) = self.last
            && let Some(slice) = region.find(addr, len)
            && Table::<H>::is_aligned(&slice)
        {
            return Ok(Table {
                anchor,
                addr,
                len,
                whole: Some(slice),
            });
        }
        Table::translate(anchor, addr, len)
    }
}

/// Appends a range that is not in the region in which the last one was, and returns the region.
#[cold]
#[inline(never)]
fn append_elsewhere<'r, A: GuestAddressSpace>(
    list: &mut Vec<Erased<A::M>>,
    regions: &'r Regions<A>,
    memory: &A::M,
    addr: u64,
    len: u32,
) -> Option<&'r Region<A::M>> {
    let region = regions.search(memory, addr)?;
    list.push(region.find(addr, len)?);
    Some(region)
}

#[cold]
#[inline(never)]
fn translate<H: Anchor>(
    list: &mut Vec<Erased<H::Memory>>,
    anchor: &H,
    addr: u64,
    len: u32,
    access: Permissions,
    limit: usize,
) -> Result<(), Rule> {
    for slice in slices(anchor.memory(), addr, u64::from(len), access)? {
        if list.len() == limit {
            return Err(Rule::Pieces(limit));
        }
        list.push(Erased::new(slice?));
    }
    Ok(())
}

/// A table in guest memory of entries of two words: an indirect table.
pub(crate) struct Table<H: Anchor> {
    anchor: H,
    addr: u64,
    len: u32,
    /// The table, if it lies in one piece and is aligned.
    whole: Option<Erased<H::Memory>>,
}

impl<H: Anchor> Table<H> {
    const ENTRY: usize = 16;

    fn is_aligned(slice: &Erased<H::Memory>) -> bool {
        slice.0.ptr_guard().as_ptr().addr().is_multiple_of(8)
    }

    #[cold]
    #[inline(never)]
    fn translate(anchor: H, addr: u64, len: u32) -> Result<Self, NoMemory> {
        let first = slices(anchor.memory(), addr, u64::from(len), Permissions::Read)?
            .next()
            .transpose()?;
        let whole = first
            .filter(|slice| slice.len() as u64 == u64::from(len))
            .map(Erased::new)
            .filter(Self::is_aligned);
        Ok(Self {
            anchor,
            addr,
            len,
            whole,
        })
    }

    pub(crate) fn entries(&self) -> usize {
        usize::try_from(self.len).unwrap_or(0) / Self::ENTRY
    }

    /// Reads the entry `index`, each of its words once.
    #[inline]
    pub(crate) fn entry(&self, index: usize) -> Result<[u64; 2], NoMemory> {
        let offset = index * Self::ENTRY;
        if let Some(Erased(table)) = &self.whole
            && offset + Self::ENTRY <= table.len()
        {
            let guard = table.ptr_guard();
            // SAFETY: both words lie in the slice, checked here, and are aligned, checked in `new`; the anchor keeps it alive.
            // They are read atomically.
            return Ok(unsafe {
                let words = guard.as_ptr().add(offset).cast::<AtomicU64>();
                [
                    (*words).load(Ordering::Relaxed),
                    (*words.add(1)).load(Ordering::Relaxed),
                ]
            });
        }
        let error = NoMemory {
            addr: self.addr,
            len: u64::from(self.len),
        };
        let addr = self.addr.checked_add(offset as u64).ok_or(error)?;
        let mut entry = [0; 16];
        self.anchor
            .memory()
            .read_slice(&mut entry, GuestAddress(addr))
            .map_err(|_| error)?;
        Ok(zerocopy::transmute!(entry))
    }
}

/// A word that both sides of a ring access.
pub(crate) trait Word {
    /// Its plain type.
    type Value: Copy;
    /// Loads it.
    fn load(&self, order: Ordering) -> Self::Value;
    /// Stores it.
    fn store(&self, value: Self::Value, order: Ordering);
}

// vm-memory has the like in `AtomicInteger`, which the compiler does not inline.
macro_rules! word {
    ($atomic:ty, $value:ty) => {
        impl Word for $atomic {
            type Value = $value;

            #[inline(always)]
            fn load(&self, order: Ordering) -> $value {
                <$atomic>::load(self, order)
            }

            #[inline(always)]
            fn store(&self, value: $value, order: Ordering) {
                <$atomic>::store(self, value, order);
            }
        }
    };
}

word!(AtomicU16, u16);
word!(AtomicU32, u32);
word!(AtomicU64, u64);

/// A contiguous piece of a mapped area.
struct Piece<M: GuestMemory> {
    /// Offset of the piece in its area.
    start: usize,
    /// Offset of its end.
    end: usize,
    /// Where the area would begin if all of it were in one piece.
    origin: *mut u8,
    slice: Erased<M>,
    /// Keeps `origin` valid.
    _guard: PtrGuardMut,
}

impl<M: GuestMemory> Piece<M> {
    #[inline(always)]
    fn mark_dirty(&self, offset: usize, len: usize) {
        self.slice.0.bitmap().mark_dirty(offset - self.start, len);
    }
}

// SAFETY: as for `Erased`; the guard is a pointer to the same memory.
unsafe impl<M: GuestMemory> Send for Piece<M> where BS<'static, M::Bitmap>: Send {}
// SAFETY: as above; the memory behind the pointer is only accessed atomically.
unsafe impl<M: GuestMemory> Sync for Piece<M> where BS<'static, M::Bitmap>: Sync {}

/// One of the areas that make up a ring, mapped. Its words are loaded and stored atomically, each at once.
///
/// `ALIGN` is the alignment of the area in guest and in host memory; every word up to that size lies in one piece.
pub(crate) struct Area<A: GuestAddressSpace, const ALIGN: usize> {
    /// The first piece: all of the area unless it is fragmented.
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
        let memory: &A::M = view;
        let error = NoMemory {
            addr,
            len: len as u64,
        };
        let mut pieces = Vec::new();
        let mut start = 0;
        for slice in slices(memory, addr, len as u64, access)? {
            let slice = slice?;
            let guard = slice.ptr_guard_mut();
            let end = start + guard.len();
            if !guard.as_ptr().addr().is_multiple_of(ALIGN)
                || (end < len && !end.is_multiple_of(ALIGN))
            {
                return Err(error);
            }
            pieces.push(Piece {
                start,
                end,
                origin: guard.as_ptr().wrapping_sub(start),
                slice: Erased::new(slice),
                _guard: guard,
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

    #[inline(always)]
    pub(crate) fn load<T: Word>(&self, offset: usize, order: Ordering) -> T::Value {
        let [word] = self.words::<T, 1>(offset).0;
        word.load(order)
    }

    /// Loads two words that follow each other, the second first; the order is that of the second.
    #[inline(always)]
    pub(crate) fn load_pair<T: Word>(&self, offset: usize, order: Ordering) -> [T::Value; 2] {
        let [first, second] = self.words::<T, 2>(offset).0;
        let second = second.load(order);
        [first.load(Ordering::Relaxed), second]
    }

    /// Stores a word and marks it dirty.
    #[inline(always)]
    pub(crate) fn store<T: Word>(&self, offset: usize, value: T::Value, order: Ordering) {
        let ([word], piece) = self.words::<T, 1>(offset);
        word.store(value, order);
        piece.mark_dirty(offset, size_of::<T>());
    }

    /// The words from `offset` on, and the piece in which they lie. An offset outside the area is a bug of this crate.
    #[inline(always)]
    fn words<T: Word, const N: usize>(&self, offset: usize) -> ([&T; N], &Piece<A::M>) {
        const { assert!(size_of::<T>() * N <= ALIGN && align_of::<T>() <= size_of::<T>()) };
        assert!(offset.is_multiple_of(size_of::<T>() * N), "misaligned word");
        let end = offset + size_of::<T>() * N;
        let (origin, piece) = if end <= self.first.end {
            (self.first.origin, &self.first)
        } else {
            let piece = self.find(offset, end);
            (piece.origin, piece)
        };
        // SAFETY: the words lie inside the piece, which was checked above or in `find`, and are aligned, as they are in the piece
        // and the piece in the host, checked in `map`. The piece is valid while `_view` is held. `Word`s are atomic integers, of
        // which any bits are a value, and which may be shared.
        let words = std::array::from_fn(|i| unsafe {
            &*origin.wrapping_add(offset + i * size_of::<T>()).cast::<T>()
        });
        (words, piece)
    }

    /// The piece in which what is between the two offsets lies.
    #[cold]
    #[inline(never)]
    fn find(&self, offset: usize, end: usize) -> &Piece<A::M> {
        let index = self.rest.partition_point(|piece| piece.start <= offset);
        let piece = index
            .checked_sub(1)
            .and_then(|index| self.rest.get(index))
            .unwrap_or(&self.first);
        assert!(end <= piece.end, "word outside the area");
        piece
    }
}
