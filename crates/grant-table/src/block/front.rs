//! The front end.

use std::collections::HashMap;

use zerocopy::{IntoBytes as _, transmute};

use crate::frame::Frame;
use crate::ring::{Front, RingError};
use crate::spec::block::{
    DiscardRequest, INDIRECT_PAGES, IndirectRequest, Request, Response, SEGMENTS,
    SEGMENTS_PER_PAGE, Segment, op,
};
use crate::spec::grant::GrantRef;

/// Why a front end failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrontError {
    /// The ring is full, or the back end broke it.
    #[error(transparent)]
    Ring(#[from] RingError),
    /// The back end answered what nobody asked.
    #[error("a response to request {0:#x}, which is not under way")]
    Id(u64),
    /// A request cannot have so many segments.
    #[error("{0} segments are too many or none")]
    Segments(usize),
}

/// A guest's disk.
#[derive(Debug)]
pub struct BlockFront {
    ring: Front<Request, Response>,
    /// The operations under way, by their requests.
    under_way: HashMap<u64, u8>,
    next: u64,
}

impl BlockFront {
    /// A disk whose ring lies in `pages`.
    ///
    /// # Errors
    ///
    /// The pages are no ring.
    pub fn new(pages: Vec<Frame>) -> Result<Self, RingError> {
        Ok(Self {
            ring: Front::new(pages)?,
            under_way: HashMap::new(),
            next: 0,
        })
    }

    fn push(&mut self, request: &Request) -> Result<u64, FrontError> {
        self.ring.request(request)?;
        self.under_way.insert(request.id, request.answered_as());
        self.next = self.next.wrapping_add(1);
        Ok(request.id)
    }

    /// Asks to read or write ([`op`]) at most 11 segments; the request's number.
    ///
    /// # Errors
    ///
    /// There are too many segments, or the ring is full.
    pub fn transfer(
        &mut self,
        operation: u8,
        sector: u64,
        segments: &[Segment],
    ) -> Result<u64, FrontError> {
        let error = FrontError::Segments(segments.len());
        let mut segment = [Segment::default(); SEGMENTS];
        segment
            .get_mut(..segments.len())
            .ok_or(error)?
            .copy_from_slice(segments);
        let segments = u8::try_from(segments.len()).map_err(|_| error)?;
        let id = self.next;
        self.push(&Request {
            operation,
            segments,
            id,
            sector,
            segment,
            ..Request::default()
        })
    }

    /// Asks to read or write many segments, which are put into pages that are granted to the back end.
    ///
    /// # Errors
    ///
    /// There are too many segments for the pages, or the ring is full.
    pub fn transfer_indirect(
        &mut self,
        operation: u8,
        sector: u64,
        segments: &[Segment],
        pages: &[(GrantRef, Frame)],
    ) -> Result<u64, FrontError> {
        let error = FrontError::Segments(segments.len());
        if segments.is_empty()
            || segments.len().div_ceil(SEGMENTS_PER_PAGE) > pages.len().min(INDIRECT_PAGES)
        {
            return Err(error);
        }
        let mut references = [GrantRef::default(); INDIRECT_PAGES];
        let parts = segments.chunks(SEGMENTS_PER_PAGE);
        for ((slot, (reference, page)), part) in references.iter_mut().zip(pages).zip(parts) {
            *slot = *reference;
            page.write(0, part.as_bytes()).then_some(()).ok_or(error)?;
        }
        let request = IndirectRequest {
            operation: op::INDIRECT,
            indirect_operation: operation,
            segments: u16::try_from(segments.len()).map_err(|_| error)?,
            id: self.next,
            sector,
            pages: references,
            ..IndirectRequest::default()
        };
        self.push(&transmute!(request))
    }

    /// Asks to make what was written last.
    ///
    /// # Errors
    ///
    /// The ring is full.
    pub fn flush(&mut self) -> Result<u64, FrontError> {
        self.transfer(op::FLUSH, 0, &[])
    }

    /// Asks to forget sectors.
    ///
    /// # Errors
    ///
    /// The ring is full.
    pub fn discard(&mut self, sector: u64, sectors: u64) -> Result<u64, FrontError> {
        let operation = op::DISCARD;
        let id = self.next;
        let request = DiscardRequest {
            operation,
            id,
            sector,
            sectors,
            ..DiscardRequest::default()
        };
        self.push(&transmute!(request))
    }

    /// Publishes the requests; whether to notify the back end.
    #[must_use]
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// Takes an answer: the request's number, and its status.
    ///
    /// # Errors
    ///
    /// The back end broke the ring, or answered something else than it was asked.
    pub fn take(&mut self) -> Result<Option<(u64, i16)>, FrontError> {
        let Some(response) = self.ring.take()? else {
            return Ok(None);
        };
        if self.under_way.get(&response.id) != Some(&response.operation) {
            return Err(FrontError::Id(response.id));
        }
        self.under_way.remove(&response.id);
        Ok(Some((response.id, response.status)))
    }

    /// Asks to be notified of the next answer; whether there is one already.
    #[must_use]
    pub fn finish(&mut self) -> bool {
        self.ring.finish()
    }
}
