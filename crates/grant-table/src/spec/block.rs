//! Block devices (`io/blkif.h`), as 64-bit guests lay them out (protocol `x86_64-abi`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::argument;
use super::grant::GrantRef;

/// Bytes of a sector, whatever the disk's own are.
pub const SECTOR: usize = 512;
/// Sectors of a page.
pub const SECTORS_PER_PAGE: u8 = 8;
/// Segments of a request (`BLKIF_MAX_SEGMENTS_PER_REQUEST`).
pub const SEGMENTS: usize = 11;
/// Pages of segments of an indirect request (`BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST`).
pub const INDIRECT_PAGES: usize = 8;
/// Segments in such a page.
pub const SEGMENTS_PER_PAGE: usize = 512;

/// What a request asks for (`BLKIF_OP_*`).
pub mod op {
    /// Read.
    pub const READ: u8 = 0;
    /// Write.
    pub const WRITE: u8 = 1;
    /// Write, with all earlier requests done before and this one before all later ones.
    pub const WRITE_BARRIER: u8 = 2;
    /// Make what is written last.
    pub const FLUSH: u8 = 3;
    /// Forget sectors.
    pub const DISCARD: u8 = 5;
    /// The segments are in pages of their own.
    pub const INDIRECT: u8 = 6;
}

/// How a request ended (`BLKIF_RSP_*`).
pub mod status {
    /// Done.
    pub const OKAY: i16 = 0;
    /// Failed.
    pub const ERROR: i16 = -1;
    /// Not supported.
    pub const NOT_SUPPORTED: i16 = -2;
}

argument!(
    /// Part of a page (`blkif_request_segment`).
    Segment {
        /// The page.
        reference: GrantRef,
        /// The first sector in it, 0 to 7.
        first: u8,
        /// The last sector in it.
        last: u8,
        /// Padding.
        padding: u16,
    }
);
argument!(
    /// A request (`blkif_request`).
    Request {
        /// [`op`].
        operation: u8,
        /// How many of the segments are meant.
        segments: u8,
        /// The disk.
        handle: u16,
        /// Padding.
        padding: u32,
        /// Comes back in the response.
        id: u64,
        /// The first sector on the disk.
        sector: u64,
        /// The pages, in the order of the disk's sectors.
        segment: [Segment; SEGMENTS],
    }
);
impl Request {
    /// The operation that the response names: of an indirect request, that which it carries out, as Linux's front end insists.
    pub fn answered_as(&self) -> u8 {
        match self.operation {
            op::INDIRECT => {
                let request: IndirectRequest = zerocopy::transmute!(*self);
                request.indirect_operation
            }
            operation => operation,
        }
    }
}

argument!(
    /// A request to forget sectors (`blkif_request_discard`).
    DiscardRequest {
        /// [`op::DISCARD`].
        operation: u8,
        /// 1: so that nobody can read them again.
        flags: u8,
        /// The disk.
        handle: u16,
        /// Padding.
        padding: u32,
        /// Comes back in the response.
        id: u64,
        /// The first sector.
        sector: u64,
        /// How many.
        sectors: u64,
        /// The rest of the slot.
        rest: [u64; 10],
    }
);
argument!(
    /// A request whose segments are in pages of their own (`blkif_request_indirect`).
    IndirectRequest {
        /// [`op::INDIRECT`].
        operation: u8,
        /// [`op::READ`], [`op::WRITE`] or [`op::WRITE_BARRIER`].
        indirect_operation: u8,
        /// How many segments.
        segments: u16,
        /// Padding.
        padding: u32,
        /// Comes back in the response.
        id: u64,
        /// The first sector on the disk.
        sector: u64,
        /// The disk.
        handle: u16,
        /// Padding.
        padding2: u16,
        /// The pages of segments.
        pages: [GrantRef; INDIRECT_PAGES],
        /// The rest of the slot.
        rest: [u32; 13],
    }
);
argument!(
    /// A response (`blkif_response`).
    Response {
        /// The request's.
        id: u64,
        /// [`Request::answered_as`].
        operation: u8,
        /// Padding.
        padding: u8,
        /// [`status`].
        status: i16,
        /// Padding.
        padding2: u32,
    }
);
