//! A chain of descriptors that was popped: its buffers, translated.

use vm_memory::Permissions;

use crate::cursor::{Reader, Writer};
use crate::error::Rule;
use crate::mapping::{Anchor, Segments, Storage};
use crate::spec::MAX_CHAIN_BYTES;

/// Pieces of memory a chain may lie in, where the queue is smaller than that. Only an IOMMU makes them more than the
/// descriptors; the bound keeps one descriptor of 4 GiB from taking a million.
const MAX_PIECES: usize = 4096;

/// A chain in flight: popped, and not yet pushed back.
///
/// A chain that is dropped never returns to the driver; that is right only when the queue is stopped or reset.
#[must_use = "a chain that is not pushed back never returns to the driver"]
pub struct Chain<H: Anchor> {
    segments: Segments<H>,
    /// How many of the segments, from the first, are readable.
    readable: usize,
    readable_len: u64,
    writable_len: u64,
    head: u16,
}

impl<H: Anchor> Chain<H> {
    /// Index of the first descriptor (split) or buffer ID (packed). It identifies the chain while it is in flight.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes the device may read.
    pub fn readable_len(&self) -> u64 {
        self.readable_len
    }

    /// Bytes the device may write.
    pub fn writable_len(&self) -> u64 {
        self.writable_len
    }

    /// A cursor over the bytes the device may read, at the first.
    pub fn reader(&self) -> Reader<'_, H> {
        Reader::new(&self.segments, 0..self.readable, self.readable_len)
    }

    /// A cursor over the bytes the device may write, at the first.
    pub fn writer(&self) -> Writer<'_, H> {
        Writer::new(
            &self.segments,
            self.readable..self.segments.len(),
            self.writable_len,
        )
    }

    pub(crate) fn into_storage(self) -> Storage<H::Memory> {
        self.segments.into_storage()
    }
}

impl<H: Anchor> std::fmt::Debug for Chain<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chain")
            .field("head", &self.head)
            .field("readable_len", &self.readable_len)
            .field("writable_len", &self.writable_len)
            .finish_non_exhaustive()
    }
}

/// Collects the descriptors of a chain and checks what concerns all of them.
pub(crate) struct Builder<H: Anchor> {
    chain: Chain<H>,
    /// A writable descriptor was seen, if an empty one.
    writable: bool,
    descriptors: usize,
    max_descriptors: usize,
}

impl<H: Anchor> Builder<H> {
    pub(crate) fn new(anchor: H, storage: Storage<H::Memory>, queue_size: u16) -> Self {
        Self {
            chain: Chain {
                segments: Segments::new(anchor, storage),
                readable: 0,
                readable_len: 0,
                writable_len: 0,
                head: 0,
            },
            writable: false,
            descriptors: 0,
            max_descriptors: usize::from(queue_size),
        }
    }

    pub(crate) fn anchor(&self) -> H {
        self.chain.segments.anchor()
    }

    /// Appends a buffer.
    pub(crate) fn add(&mut self, addr: u64, len: u32, writable: bool) -> Result<(), Rule> {
        let chain = &mut self.chain;
        self.descriptors += 1;
        if self.descriptors > self.max_descriptors {
            return Err(Rule::TooLong);
        }
        let access = if writable {
            self.writable = true;
            chain.writable_len += u64::from(len);
            Permissions::Write
        } else {
            if self.writable {
                return Err(Rule::Order);
            }
            chain.readable_len += u64::from(len);
            Permissions::Read
        };
        let bytes = chain.readable_len + chain.writable_len;
        if bytes > MAX_CHAIN_BYTES {
            return Err(Rule::Bytes(bytes));
        }
        if len != 0 {
            chain
                .segments
                .translate(addr, len, access, self.max_descriptors.max(MAX_PIECES))?;
        }
        if !writable {
            chain.readable = chain.segments.len();
        }
        Ok(())
    }

    pub(crate) fn finish(mut self, head: u16) -> Chain<H> {
        self.chain.head = head;
        self.chain
    }
}
