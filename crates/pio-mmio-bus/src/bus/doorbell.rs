use std::fmt;
use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{AddressSpace, RegionId};

/// A register whose write only wakes someone: the bus signals an eventfd instead of calling the device.
#[derive(Clone)]
pub struct Doorbell {
    /// Width of the writes that ring it, 1, 2, 4 or 8 bytes; `None` for any of these.
    pub width: Option<u8>,
    /// The value that rings it; `None` for any. Needs a width.
    pub datamatch: Option<u64>,
    /// Whether the device has to see the value that is written (virtio's NOTIFICATION_DATA). Such a doorbell never
    /// becomes an eventfd: its writes go to the device.
    pub needs_value: bool,
    /// What is signalled. Make it non-blocking, or a full counter blocks the vCPU.
    pub eventfd: Arc<EventFd>,
}

impl fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Doorbell")
            .field("width", &self.width)
            .field("datamatch", &self.datamatch)
            .field("needs_value", &self.needs_value)
            .finish_non_exhaustive()
    }
}

impl Doorbell {
    /// Whether some write can ring it.
    pub(super) fn is_valid(&self) -> bool {
        match (self.width, self.datamatch) {
            (None, datamatch) => datamatch.is_none(),
            (Some(8), _) => true,
            (Some(width @ (1 | 2 | 4)), datamatch) => {
                datamatch.is_none_or(|value| value >> (u32::from(width) * 8) == 0)
            }
            _ => false,
        }
    }

    /// Whether one write could ring both, if they were at the same offset.
    pub(super) fn collides(&self, other: &Self) -> bool {
        fn meet<T: PartialEq>(a: Option<T>, b: Option<T>) -> bool {
            a.is_none() || b.is_none() || a == b
        }
        meet(self.width, other.width) && meet(self.datamatch, other.datamatch)
    }

    /// Whether writing `data` rings it.
    pub(super) fn rung_by(&self, data: &[u8]) -> bool {
        self.width
            .is_none_or(|width| usize::from(width) == data.len())
            && self
                .datamatch
                .is_none_or(|value| value.to_le_bytes().starts_with(data))
    }
}

/// Names a doorbell of a bus. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DoorbellId {
    pub(super) region: RegionId,
    pub(super) serial: u64,
}

/// A doorbell and where it is in its region.
#[derive(Clone)]
pub struct Placed {
    pub id: DoorbellId,
    pub offset: u64,
    pub doorbell: Doorbell,
}

/// Where a doorbell is at the moment, as a hypervisor's ioeventfd takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DoorbellAddress {
    /// Ports or memory.
    pub space: AddressSpace,
    /// The address.
    pub address: u64,
    /// Width in bytes; `None` for any.
    pub width: Option<u8>,
    /// The value that rings it; `None` for any.
    pub datamatch: Option<u64>,
}

/// Has someone else, a hypervisor, watch doorbells, so that writes to them no longer reach the bus.
///
/// Called while the bus is locked against changes: it must not use the bus.
pub trait DoorbellBinder: Send + Sync {
    /// Begins to signal `eventfd` for writes to `address`. On error the bus goes on signalling it itself.
    fn bind(&self, address: &DoorbellAddress, eventfd: &EventFd) -> io::Result<()>;

    /// Ends that. Called for what was bound, with the same arguments. What to do about a failure only the binder
    /// can know.
    fn unbind(&self, address: &DoorbellAddress, eventfd: &EventFd);
}

impl<T: DoorbellBinder + ?Sized> DoorbellBinder for Arc<T> {
    fn bind(&self, address: &DoorbellAddress, eventfd: &EventFd) -> io::Result<()> {
        (**self).bind(address, eventfd)
    }

    fn unbind(&self, address: &DoorbellAddress, eventfd: &EventFd) {
        (**self).unbind(address, eventfd);
    }
}
