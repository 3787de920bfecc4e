//! What the hypervisor knows of entries that are in use. The shared entry may say anything meanwhile.

use crate::frame::Frame;
use crate::guest::Access;
use crate::spec::DomId;
use crate::spec::grant::{GrantRef, MapFlags};

/// How often an entry is used, in four ways.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pin {
    /// Mapped into a domain's memory, or being copied from.
    pub host_read: u8,
    /// Mapped writable into a domain's memory, or being copied to.
    pub host_write: u8,
    /// Mapped for devices.
    pub device_read: u8,
    /// Mapped writable for devices.
    pub device_write: u8,
}

impl Pin {
    /// A count that has come this far lets nobody in any more.
    pub const LIMIT: u8 = 0x80;

    /// One use, in one way or in both.
    pub(super) fn one(flags: MapFlags) -> Self {
        let (host, device) = (
            flags.contains(MapFlags::HOST),
            flags.contains(MapFlags::DEVICE),
        );
        let read = flags.contains(MapFlags::READONLY);
        Self {
            host_read: (host && read).into(),
            host_write: (host && !read).into(),
            device_read: (device && read).into(),
            device_write: (device && !read).into(),
        }
    }

    fn counts(self) -> [u8; 4] {
        [
            self.host_read,
            self.host_write,
            self.device_read,
            self.device_write,
        ]
    }

    /// Nobody uses the entry.
    pub fn is_free(self) -> bool {
        u32::from_ne_bytes(self.counts()) == 0
    }

    /// Somebody writes.
    pub fn is_written(self) -> bool {
        self.host_write != 0 || self.device_write != 0
    }

    pub(super) fn is_full(self) -> bool {
        u32::from_ne_bytes(self.counts()) & u32::from_ne_bytes([Self::LIMIT; 4]) != 0
    }

    pub(super) fn add(&mut self, other: Self) {
        self.host_read = self.host_read.saturating_add(other.host_read);
        self.host_write = self.host_write.saturating_add(other.host_write);
        self.device_read = self.device_read.saturating_add(other.device_read);
        self.device_write = self.device_write.saturating_add(other.device_write);
    }

    pub(super) fn sub(&mut self, other: Self) {
        self.host_read = self.host_read.saturating_sub(other.host_read);
        self.host_write = self.host_write.saturating_sub(other.host_write);
        self.device_read = self.device_read.saturating_sub(other.device_read);
        self.device_write = self.device_write.saturating_sub(other.device_write);
    }
}

/// An entry in use. All but `pin` tells something only while `pin` is not zero, and does not change then.
#[derive(Debug, Default)]
pub(super) struct Active {
    pub(super) pin: Pin,
    /// Who uses it.
    pub(super) user: DomId,
    pub(super) part: Part,
    /// Transitive: the grant that it passes on.
    pub(super) passes: Option<(DomId, GrantRef)>,
    pub(super) frame: Option<Frame>,
    /// The domain's own memory does not forbid writing to the frame.
    pub(super) writable: bool,
}

/// The bytes of a page that are granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) first: u16,
    pub(super) length: u16,
    /// It is not to be mapped, whatever its length.
    pub(super) copy_only: bool,
}

impl Part {
    pub(super) const PAGE: Self = Self {
        first: 0,
        length: 4096,
        copy_only: false,
    };

    pub(super) fn contains(self, offset: u16, length: u16) -> bool {
        let end = |first: u16, length: u16| u32::from(first) + u32::from(length);
        offset >= self.first && end(offset, length) <= end(self.first, self.length)
    }
}

/// The records of entries that lie side by side: locked together, so that a batch seldom locks.
pub(super) type Stripe = [Active; STRIPE];

/// As many as are reserved at the start of a table, so that these share a lock with no others.
pub(super) const STRIPE: usize = 8;

impl Active {
    /// A use of `frame` that begins.
    pub(super) fn begin(user: DomId, part: Part, (frame, access): (Frame, Access)) -> Self {
        Self {
            pin: Pin::default(),
            user,
            part,
            passes: None,
            frame: Some(frame),
            writable: access == Access::ReadWrite,
        }
    }

    /// The frame, if it may be used like this.
    pub(super) fn frame(&self, access: Access) -> Option<&Frame> {
        let allowed = self.writable || access == Access::ReadOnly;
        self.frame.as_ref().filter(|_| allowed)
    }

    /// Whether the entry's shared state must be looked at again before a use like this.
    pub(super) fn must_check(&self, access: Access) -> bool {
        self.pin.is_free() || (access == Access::ReadWrite && !self.pin.is_written())
    }
}
