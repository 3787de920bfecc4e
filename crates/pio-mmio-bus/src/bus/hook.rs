use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{Outcome, RegionId};

/// Which accesses a hook sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Reads only.
    Reads,
    /// Writes only.
    Writes,
    /// Reads and writes.
    Both,
}

/// An access as a hook sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access<'a> {
    /// The region it goes to.
    pub region: RegionId,
    /// Offset from the start of the region, in bytes.
    pub offset: u64,
    /// What it does.
    pub operation: Operation<'a>,
}

/// What an access does. Widths are 1, 2, 4 or 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Reads this many bytes.
    Read {
        /// Width of the access, in bytes.
        width: usize,
    },
    /// Writes these bytes.
    Write(&'a [u8]),
}

impl Operation<'_> {
    /// Width of the access, in bytes.
    pub fn width(&self) -> usize {
        match self {
            Self::Read { width } => *width,
            Self::Write(data) => data.len(),
        }
    }
}

/// What a hook decides about an access.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, to the next hook or to the device.
    Allow,
    /// It does not happen: the guest reads all ones, or its write is ignored.
    Deny,
    /// It does not happen now: the vCPU is to make it again once the suspension is over.
    Suspend(Suspension),
}

/// Stands between the guest and a part of a region.
///
/// Hooks of one region are asked in the order in which they were added, until one does not allow. A hook runs inside the
/// access: it must not wait, and suspends the access instead.
pub trait Hook: Send + Sync {
    /// Called before the access. An access that was suspended comes again as a new one.
    fn before(&self, access: &Access<'_>) -> Verdict;

    /// Called once for each access that [`before`](Self::before) allowed, in the opposite order. `data` is what was written, or what
    /// the guest reads; `outcome` may be that a later hook denied or suspended it.
    fn after(&self, access: &Access<'_>, data: &[u8], outcome: &Outcome) {
        let _ = (access, data, outcome);
    }
}

impl<T: Hook + ?Sized> Hook for Arc<T> {
    fn before(&self, access: &Access<'_>) -> Verdict {
        (**self).before(access)
    }

    fn after(&self, access: &Access<'_>, data: &[u8], outcome: &Outcome) {
        (**self).after(access, data, outcome);
    }
}

/// Names a hook of a bus. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HookId {
    pub(super) region: RegionId,
    pub(super) serial: u64,
}

/// A hook and the offsets it covers.
#[derive(Clone)]
pub struct Hooked {
    pub id: HookId,
    pub offsets: Range<u64>,
    pub direction: Direction,
    pub hook: Arc<dyn Hook>,
}

impl Hooked {
    /// Whether the hook sees an access of `width` bytes at `offset`.
    pub fn sees(&self, offset: u64, operation: Operation<'_>) -> bool {
        let direction = match operation {
            Operation::Read { .. } => self.direction != Direction::Writes,
            Operation::Write(_) => self.direction != Direction::Reads,
        };
        direction && self.covers(offset, operation.width() as u64)
    }

    /// Whether the hook sees writes to some of the `width` bytes at `offset`.
    pub fn sees_writes(&self, offset: u64, width: u64) -> bool {
        self.direction != Direction::Reads && self.covers(offset, width)
    }

    fn covers(&self, offset: u64, width: u64) -> bool {
        offset < self.offsets.end && self.offsets.start < offset.saturating_add(width)
    }
}

/// Why an access waits: an eventfd that becomes readable when the access is worth making again.
///
/// A vCPU thread parks by polling it together with whatever else may kick it. Several may wait for one suspension, so
/// only its owner, the hook, ever reads the eventfd.
#[derive(Clone)]
pub struct Suspension(Arc<EventFd>);

impl Suspension {
    /// A suspension that is over when `eventfd` becomes readable.
    pub fn new(eventfd: Arc<EventFd>) -> Self {
        Self(eventfd)
    }

    /// What to poll for reading.
    pub fn eventfd(&self) -> &EventFd {
        &self.0
    }
}

/// The same eventfd.
impl PartialEq for Suspension {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Suspension {}

impl fmt::Debug for Suspension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Suspension").finish_non_exhaustive()
    }
}
