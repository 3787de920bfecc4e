//! A chain of descriptors that was popped: its buffers, translated.

use vm_memory::{GuestAddressSpace, Permissions};

use crate::cursor::{Reader, Writer};
use crate::error::Rule;
use crate::mapping::{Anchor, Regions, Room, Segments, Table};
use crate::spec::MAX_CHAIN_BYTES;

/// Pieces of memory a chain may lie in, where the queue is smaller than that. Only an IOMMU makes them more than the
/// descriptors; the bound keeps one descriptor of 4 GiB from taking a million.
const MAX_PIECES: usize = 4096;

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

    #[inline(always)]
    pub(crate) fn into_room(self) -> Box<ChainRoom<H::Memory>> {
        self.0.into_room()
    }

    /// A chain of one buffer, which must not be empty, if that lies in one of the regions.
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
        let found = self.0.find(regions, addr, len);
        if found {
            let about = self.0.about_mut();
            if writable {
                about.writable_len = len.into();
            } else {
                about.readable = 1;
                about.readable_len = len.into();
            }
        }
        found
    }

    /// An empty chain.
    #[inline(always)]
    pub(crate) fn new(head: u16, anchor: H, room: Box<ChainRoom<H::Memory>>) -> Self {
        Self(Segments::new(
            anchor,
            room,
            About {
                head,
                ..About::default()
            },
        ))
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
    segments: &'c mut Segments<H, About>,
    regions: &'c Regions<A>,
    about: About,
    /// A writable descriptor was seen, if an empty one.
    writable: bool,
    descriptors: usize,
    max_descriptors: usize,
}

impl<'c, H: Anchor, A: GuestAddressSpace<M = H::Memory>> Builder<'c, H, A> {
    #[inline(always)]
    pub(crate) fn new(chain: &'c mut Chain<H>, regions: &'c Regions<A>, queue_size: u16) -> Self {
        Self {
            about: About {
                head: chain.head(),
                ..About::default()
            },
            segments: &mut chain.0,
            regions,
            writable: false,
            descriptors: 0,
            max_descriptors: usize::from(queue_size),
        }
    }

    /// Maps an indirect table of `len` bytes.
    #[inline(always)]
    pub(crate) fn table(&self, addr: u64, len: u32) -> Result<Table<H>, Rule> {
        if len == 0 || !len.is_multiple_of(16) {
            return Err(Rule::IndirectLength(len));
        }
        Ok(Table::new(self.segments.anchor(), self.regions, addr, len)?)
    }

    /// Appends a buffer.
    #[inline(always)]
    pub(crate) fn add(&mut self, addr: u64, len: u32, writable: bool) -> Result<(), Rule> {
        self.descriptors += 1;
        if self.descriptors > self.max_descriptors {
            return Err(Rule::TooLong);
        }
        if self.writable && !writable {
            return Err(Rule::Order);
        }
        self.writable = writable;
        // 2¹⁵ descriptors of less than 2³² bytes: the sums do not overflow.
        if writable {
            self.about.writable_len += u64::from(len);
        } else {
            self.about.readable_len += u64::from(len);
        }
        let bytes = self.about.readable_len + self.about.writable_len;
        if bytes > MAX_CHAIN_BYTES {
            return Err(Rule::Bytes(bytes));
        }
        // What is found is one piece, and there are no more descriptors than pieces allowed.
        if len != 0 && !self.segments.find(self.regions, addr, len) {
            let access = if writable {
                Permissions::Write
            } else {
                Permissions::Read
            };
            let limit = self.max_descriptors.max(MAX_PIECES);
            self.segments.translate(addr, len, access, limit)?;
        }
        if !writable {
            self.about.readable = self.segments.len();
        }
        Ok(())
    }

    /// The chain is complete.
    #[inline(always)]
    pub(crate) fn finish(self) {
        *self.segments.about_mut() = self.about;
    }
}
