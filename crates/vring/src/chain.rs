//! A chain of descriptors that was popped: its buffers, translated.

use vm_memory::{GuestAddressSpace, Permissions};

use crate::cursor::{Reader, Writer};
use crate::error::Rule;
use crate::mapping::{Anchor, Appender, Regions, Room, Segments, Slice, Table};
use crate::spec::MAX_CHAIN_BYTES;

/// Pieces of memory a chain may lie in, where the queue is smaller than that. Only an IOMMU makes them more than the
/// descriptors; the bound keeps one descriptor of 4 GiB from taking a million.
const MAX_PIECES: usize = 4096;

/// Bytes of the longest indirect table. Sixteen bits cannot number the entries of a longer one but for the last.
const MAX_TABLE: u32 = 16 * 0xffff;

/// What is known about a chain besides its segments.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct About {
    head: u16,
    /// How many of the segments, from the first, are readable.
    readable: usize,
    readable_len: u64,
    writable_len: u64,
}

/// Room for a chain.
pub(crate) type ChainRoom<M> = Room<M, About>;

/// A chain in flight: popped, and not yet pushed back.
///
/// A chain that is dropped never returns to the driver; that is right only when the queue is stopped or reset.
#[must_use = "a chain that is not pushed back never returns to the driver"]
pub struct Chain<H: Anchor>(Segments<H, About>);

impl<H: Anchor> Chain<H> {
    /// Index of the first descriptor (split) or buffer ID (packed). It identifies the chain while it is in flight.
    #[inline]
    pub fn head(&self) -> u16 {
        self.0.about().head
    }

    /// Bytes the device may read.
    #[inline]
    pub fn readable_len(&self) -> u64 {
        self.0.about().readable_len
    }

    /// Bytes the device may write.
    #[inline]
    pub fn writable_len(&self) -> u64 {
        self.0.about().writable_len
    }

    /// The bytes the device may read, as slices of guest memory: for what takes all of them at once. A [`reader`](Self::reader) takes
    /// them by and by.
    #[inline(always)]
    pub fn readable(&self) -> impl Iterator<Item = Slice<'_, H::Memory>> {
        self.0.slices(0..self.0.about().readable)
    }

    /// The bytes the device may write, as slices of guest memory: for what counts itself how many it writes. A
    /// [`writer`](Self::writer) does that.
    #[inline(always)]
    pub fn writable(&self) -> impl Iterator<Item = Slice<'_, H::Memory>> {
        self.0.slices(self.0.about().readable..self.0.len())
    }

    /// A cursor over the bytes the device may read, at the first.
    pub fn reader(&self) -> Reader<'_, H> {
        Reader::new(&self.0, 0..self.0.about().readable, self.readable_len())
    }

    /// A cursor over the bytes the device may write, at the first.
    pub fn writer(&self) -> Writer<'_, H> {
        Writer::new(
            &self.0,
            self.0.about().readable..self.0.len(),
            self.writable_len(),
        )
    }

    /// The chain, whose head was not known.
    #[inline(always)]
    pub(crate) fn with_head(mut self, head: u16) -> Self {
        self.0.about_mut().head = head;
        self
    }

    #[inline(always)]
    pub(crate) fn into_room(self) -> Box<ChainRoom<H::Memory>> {
        self.0.into_room()
    }

    /// Makes this a chain of one buffer, which must not be empty, if that lies in one of the regions.
    #[inline(always)]
    pub(crate) fn single<A>(
        &mut self,
        regions: &Regions<A>,
        addr: u64,
        len: u32,
        writable: bool,
    ) -> bool
    where
        A: GuestAddressSpace<M = H::Memory>,
    {
        let mut segments = Appender::new(&mut self.0, regions);
        let found = segments.append(addr, len);
        if found {
            let (about, len) = (segments.about, u64::from(len));
            let (readable, readable_len, writable_len) =
                if writable { (0, 0, len) } else { (1, len, 0) };
            about.readable = readable;
            about.readable_len = readable_len;
            about.writable_len = writable_len;
        }
        found
    }

    /// A chain of which nothing is known but its head.
    #[inline(always)]
    pub(crate) fn new(head: u16, anchor: H, room: Box<ChainRoom<H::Memory>>) -> Self {
        let mut segments = Segments::new(anchor, room);
        segments.about_mut().head = head;
        Self(segments)
    }
}

impl<H: Anchor> std::fmt::Debug for Chain<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let About {
            head,
            readable: _,
            readable_len,
            writable_len,
        } = self.0.about();
        f.debug_struct("Chain")
            .field("head", head)
            .field("readable_len", readable_len)
            .field("writable_len", writable_len)
            .finish_non_exhaustive()
    }
}

/// Adds descriptors to a chain and checks what concerns all of them.
pub(crate) struct Builder<'c, H: Anchor, A: GuestAddressSpace<M = H::Memory>> {
    segments: Appender<'c, H, A, About>,
    /// The segments and bytes before the first writable descriptor, if one was seen, if an empty one.
    readable: Option<(usize, u64)>,
    bytes: u64,
    /// Descriptors that may follow.
    left: u16,
    queue_size: u16,
}

impl<'c, H: Anchor, A: GuestAddressSpace<M = H::Memory>> Builder<'c, H, A> {
    #[inline(always)]
    pub(crate) fn new(chain: &'c mut Chain<H>, regions: &'c Regions<A>, queue_size: u16) -> Self {
        Self {
            segments: Appender::new(&mut chain.0, regions),
            readable: None,
            bytes: 0,
            left: queue_size,
            queue_size,
        }
    }

    /// Maps an indirect table of `len` bytes.
    #[inline(always)]
    pub(crate) fn table(&mut self, addr: u64, len: u32) -> Result<Table<H>, Rule> {
        if len == 0 || !len.is_multiple_of(16) || len > MAX_TABLE {
            return Err(Rule::IndirectLength(len));
        }
        Ok(self.segments.table(addr, len)?)
    }

    /// Appends a buffer.
    #[inline(always)]
    pub(crate) fn add(&mut self, addr: u64, len: u32, writable: bool) -> Result<(), Rule> {
        self.left = self.left.checked_sub(1).ok_or(Rule::TooLong)?;
        if !writable {
            if self.readable.is_some() {
                return Err(Rule::Order);
            }
        } else if self.readable.is_none() {
            self.readable = Some((self.segments.len(), self.bytes));
        }
        // 2¹⁵ descriptors of less than 2³² bytes: the sum does not overflow.
        self.bytes += u64::from(len);
        // What is found is one piece, and there are no more descriptors than pieces allowed.
        if len != 0 && !self.segments.append(addr, len) {
            let access = if writable {
                Permissions::Write
            } else {
                Permissions::Read
            };
            let limit = usize::from(self.queue_size).max(MAX_PIECES);
            self.segments.translate(addr, len, access, limit)?;
        }
        Ok(())
    }

    /// The chain is complete.
    #[inline(always)]
    pub(crate) fn finish(self) -> Result<(), Rule> {
        if self.bytes > MAX_CHAIN_BYTES {
            return Err(Rule::Bytes(self.bytes));
        }
        let (readable, readable_len) = self.readable.unwrap_or((self.segments.len(), self.bytes));
        let about = self.segments.about;
        about.readable = readable;
        about.readable_len = readable_len;
        about.writable_len = self.bytes - readable_len;
        Ok(())
    }
}
