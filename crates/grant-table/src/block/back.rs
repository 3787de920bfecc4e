//! The back end.

use std::collections::HashMap;
use std::io;

use zerocopy::{IntoBytes as _, transmute};

use super::Disk;
use crate::foreign::{Foreign, Mapped};
use crate::frame::Frame;
use crate::guest::Access;
use crate::ring::{Back, RingError};
use crate::spec::block::{
    DiscardRequest, IndirectRequest, Request, Response, SECTOR, SECTORS_PER_PAGE, SEGMENTS,
    SEGMENTS_PER_PAGE, Segment, op, status,
};
use crate::spec::grant::GrantRef;
use crate::spec::{DomId, PAGE_SIZE};

/// What a back end offers.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Segments of an indirect request (`feature-max-indirect-segments`); 0 offers none.
    pub indirect_segments: u16,
    /// Grants that stay mapped between requests (`feature-persistent`); 0 offers none.
    pub persistent: usize,
    /// The guest must not write.
    pub read_only: bool,
}

/// Serves a disk to a domain.
#[derive(Debug)]
pub struct BlockBack<F, D> {
    ring: Back<Request, Response>,
    domain: DomId,
    foreign: F,
    disk: D,
    limits: Limits,
    persistent: HashMap<GrantRef, Mapped>,
}

/// A request that was copied out of the ring, with its segments.
struct Work {
    write: bool,
    sector: u64,
    segments: Vec<Segment>,
}

/// Why a request failed, as its status.
struct Failed(i16);

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self(match error.kind() {
            io::ErrorKind::Unsupported => status::NOT_SUPPORTED,
            _ => status::ERROR,
        })
    }
}

const ERROR: Failed = Failed(status::ERROR);

impl<F: Foreign, D: Disk> BlockBack<F, D> {
    /// A back end for `domain`, with the pages of the ring.
    ///
    /// # Errors
    ///
    /// The pages are no ring.
    pub fn new(
        pages: Vec<Frame>,
        domain: DomId,
        foreign: F,
        disk: D,
        limits: Limits,
    ) -> Result<Self, RingError> {
        Ok(Self {
            ring: Back::new(pages)?,
            domain,
            foreign,
            disk,
            limits,
            persistent: HashMap::new(),
        })
    }

    /// Serves what is in the ring; whether to notify the front end.
    ///
    /// # Errors
    ///
    /// The front end broke the ring: disconnect it.
    pub fn serve(&mut self) -> Result<bool, RingError> {
        let mut notify = false;
        // As many as the ring has slots, lest a front end keeps this busy for ever.
        for _ in 0..self.ring.size() {
            let Some(request) = self.ring.take()? else {
                if self.ring.finish() {
                    continue;
                }
                break;
            };
            let result = self.execute(&request);
            let response = Response {
                id: request.id,
                operation: request.answered_as(),
                status: result.err().map_or(status::OKAY, |Failed(status)| status),
                ..Response::default()
            };
            self.ring.respond(&response)?;
            notify |= self.ring.publish();
        }
        Ok(notify)
    }

    /// Whether there are requests to serve. If not, the front end notifies of the next.
    pub fn is_waiting(&mut self) -> bool {
        self.ring.finish()
    }

    fn execute(&mut self, request: &Request) -> Result<(), Failed> {
        match request.operation {
            op::READ | op::WRITE => {
                let work = self.direct(request)?;
                self.transfer(&work)
            }
            op::WRITE_BARRIER => {
                self.check_writable()?;
                self.disk.flush()?;
                if request.segments != 0 {
                    let work = self.direct(request)?;
                    self.transfer(&work)?;
                }
                Ok(self.disk.flush()?)
            }
            op::FLUSH => Ok(self.disk.flush()?),
            op::DISCARD => {
                let request: DiscardRequest = transmute!(*request);
                self.check_writable()?;
                self.check_range(request.sector, request.sectors)?;
                Ok(self.disk.discard(request.sector, request.sectors)?)
            }
            op::INDIRECT => {
                let work = self.indirect(&transmute!(*request))?;
                self.transfer(&work)
            }
            _ => Err(Failed(status::NOT_SUPPORTED)),
        }
    }

    fn check_writable(&self) -> Result<(), Failed> {
        if self.limits.read_only {
            Err(ERROR)
        } else {
            Ok(())
        }
    }

    fn check_range(&self, sector: u64, sectors: u64) -> Result<(), Failed> {
        let end = sector.checked_add(sectors).ok_or(ERROR)?;
        if end > self.disk.sectors() {
            Err(ERROR)
        } else {
            Ok(())
        }
    }

    fn direct(&self, request: &Request) -> Result<Work, Failed> {
        let count = usize::from(request.segments);
        if count == 0 || count > SEGMENTS {
            return Err(ERROR);
        }
        self.check(Work {
            write: request.operation != op::READ,
            sector: request.sector,
            segments: request.segment.iter().copied().take(count).collect(),
        })
    }

    /// Copies the segments out of their pages.
    fn indirect(&mut self, request: &IndirectRequest) -> Result<Work, Failed> {
        let write = match request.indirect_operation {
            op::READ => false,
            op::WRITE => true,
            _ => return Err(ERROR),
        };
        if request.segments == 0 || request.segments > self.limits.indirect_segments {
            return Err(ERROR);
        }
        let mut left = usize::from(request.segments);
        let mut segments = Vec::with_capacity(left);
        for &page in &request.pages {
            if left == 0 {
                break;
            }
            let mut room = [Segment::default(); SEGMENTS_PER_PAGE];
            let part = room
                .get_mut(..left.min(SEGMENTS_PER_PAGE))
                .unwrap_or_default();
            self.foreign
                .read(self.domain, page, 0, part.as_mut_bytes())
                .map_err(|_| ERROR)?;
            segments.extend_from_slice(part);
            left -= part.len();
        }
        if left != 0 {
            return Err(ERROR);
        }
        self.check(Work {
            write,
            sector: request.sector,
            segments,
        })
    }

    fn check(&self, work: Work) -> Result<Work, Failed> {
        let mut sectors = 0;
        for segment in &work.segments {
            if segment.first > segment.last || segment.last >= SECTORS_PER_PAGE {
                return Err(ERROR);
            }
            sectors += u64::from(segment.last - segment.first) + 1;
        }
        self.check_range(work.sector, sectors)?;
        if work.write {
            self.check_writable()?;
        }
        Ok(work)
    }

    /// Moves the data, page by page.
    fn transfer(&mut self, work: &Work) -> Result<(), Failed> {
        let missing: Vec<_> = work
            .segments
            .iter()
            .map(|segment| segment.reference)
            .filter(|reference| !self.persistent.contains_key(reference))
            .collect();
        // One that stays mapped serves requests of both kinds.
        let keep = self.persistent.len().saturating_add(missing.len()) <= self.limits.persistent;
        let access = if work.write && !keep {
            Access::ReadOnly
        } else {
            Access::ReadWrite
        };
        let mut mapped = HashMap::new();
        let mut failed = false;
        for (&reference, page) in
            missing
                .iter()
                .zip(self.foreign.map(self.domain, &missing, access))
        {
            match page {
                // The same page may be there twice.
                Ok(page) => {
                    if let Some(twin) = mapped.insert(reference, page) {
                        failed |= self.foreign.unmap(vec![twin]).is_err();
                    }
                }
                Err(_) => failed = true,
            }
        }
        let result = if failed {
            Err(ERROR)
        } else {
            self.move_data(work, &mapped)
        };
        if keep && !failed {
            self.persistent.extend(mapped);
            return result;
        }
        let unmapped = self.foreign.unmap(mapped.into_values().collect());
        result.and(unmapped.map_err(|_| ERROR))
    }

    fn move_data(&mut self, work: &Work, mapped: &HashMap<GrantRef, Mapped>) -> Result<(), Failed> {
        let mut page = [0; PAGE_SIZE];
        let mut sector = work.sector;
        for segment in &work.segments {
            let found = self
                .persistent
                .get(&segment.reference)
                .or_else(|| mapped.get(&segment.reference));
            let frame = &found.ok_or(ERROR)?.frame;
            let sectors = usize::from(segment.last - segment.first) + 1;
            let at = usize::from(segment.first) * SECTOR;
            let bytes = page.get_mut(..sectors * SECTOR).ok_or(ERROR)?;
            if work.write {
                // The disk never sees bytes that still change.
                frame.read(at, bytes).then_some(()).ok_or(ERROR)?;
                self.disk.write(sector, bytes)?;
            } else {
                self.disk.read(sector, bytes)?;
                frame.write(at, bytes).then_some(()).ok_or(ERROR)?;
            }
            sector += u64::try_from(sectors).unwrap_or(0);
        }
        Ok(())
    }

    /// Lets go of the pages that stay mapped, and gives back the disk.
    pub fn disconnect(mut self) -> D {
        let pages = self.persistent.into_values().collect();
        // A grant that could not be unmapped ends with this domain.
        let _unmapped = self.foreign.unmap(pages);
        self.disk
    }
}
