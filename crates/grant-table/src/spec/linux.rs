//! The devices by which Linux's programs use grants and event channels (Linux's `xen/gntdev.h`, `xen/gntalloc.h`, `xen/evtchn.h`).

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::argument;
use super::event::Port;
use super::grant::GrantRef;

/// The number of a request: `_IOC(_IOC_NONE, device, number, size)` of `asm-generic/ioctl.h`.
const fn request(device: u8, number: u8, size: u8) -> u32 {
    u32::from_be_bytes([0, size, device, number])
}

/// Requests to `/dev/xen/gntdev`, which maps and copies what others grant.
pub mod gntdev {
    use super::request;

    /// Makes room for grants, to be mapped with `mmap`.
    pub const MAP: u32 = request(b'G', 0, 24);
    /// Gives the room back.
    pub const UNMAP: u32 = request(b'G', 1, 16);
    /// Limits the grants mapped at a time. Newer kernels have no such limit and refuse (`ENOTTY`).
    pub const SET_MAX_GRANTS: u32 = request(b'G', 3, 4);
    /// What to do when a page is unmapped.
    pub const UNMAP_NOTIFY: u32 = request(b'G', 7, 16);
    /// Copies.
    pub const COPY: u32 = request(b'G', 8, 16);
}

/// Requests to `/dev/xen/gntalloc`, which grants pages to others.
pub mod gntalloc {
    use super::request;

    /// Allocates pages and grants them.
    pub const ALLOCATE: u32 = request(b'G', 5, 24);
    /// Ends the grants.
    pub const FREE: u32 = request(b'G', 6, 16);
    /// What to do when a page is unmapped.
    pub const UNMAP_NOTIFY: u32 = request(b'G', 7, 16);
    /// The flag of [`Allocate`](super::Allocate) that lets the other domain write.
    pub const WRITABLE: u16 = 1;
    /// Bytes of the argument of [`ALLOCATE`], with one reference. As many are read and written at least.
    pub const ALLOCATE_SIZE: usize = 24;
}

/// Requests to `/dev/xen/evtchn`. Those that bind return the port.
pub mod evtchn {
    use super::request;

    /// Binds a virtual interrupt.
    pub const BIND_VIRQ: u32 = request(b'E', 0, 4);
    /// Connects to a port.
    pub const BIND_INTERDOMAIN: u32 = request(b'E', 1, 8);
    /// Makes a port to which a domain may connect.
    pub const BIND_UNBOUND: u32 = request(b'E', 2, 4);
    /// Gives a port back.
    pub const UNBIND: u32 = request(b'E', 3, 4);
    /// Notifies the other end.
    pub const NOTIFY: u32 = request(b'E', 4, 4);
    /// Forgets the events that were not read.
    pub const RESET: u32 = request(b'E', 5, 0);
    /// Limits the device to connections with one domain.
    pub const RESTRICT: u32 = request(b'E', 6, 2);
}

bitflags! {
    /// What happens when a page is unmapped (`UNMAP_NOTIFY_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct NotifyFlags: u32 {
        /// A byte of it becomes 0.
        const CLEAR_BYTE = 1;
        /// An event is sent.
        const SEND_EVENT = 2;
    }
}

argument!(
    /// A grant (`ioctl_gntdev_grant_ref`).
    Grant {
        /// Whose.
        domain: u32,
        /// Which.
        reference: GrantRef,
    }
);
argument!(
    /// The argument of [`gntdev::MAP`], before its [`Grant`]s.
    Map {
        /// In: how many grants.
        count: u32,
        /// Padding.
        padding: u32,
        /// Out: where to map them in the device's file.
        index: u64,
    }
);
argument!(
    /// The argument of [`gntdev::UNMAP`].
    Unmap {
        /// In: where.
        index: u64,
        /// In: how many.
        count: u32,
        /// Padding.
        padding: u32,
    }
);
argument!(
    /// The argument of [`gntdev::SET_MAX_GRANTS`].
    SetMaxGrants {
        /// In.
        count: u32,
    }
);
argument!(
    /// The argument of either [`gntdev::UNMAP_NOTIFY`] or [`gntalloc::UNMAP_NOTIFY`].
    UnmapNotify {
        /// In: where the byte is in the device's file.
        index: u64,
        /// In: [`NotifyFlags`].
        action: u32,
        /// In: from which port to notify.
        port: Port,
    }
);
argument!(
    /// A grant as one end of a copy (the member `foreign` of `gntdev_grant_copy_segment`). The other end may be an address.
    CopyGrant {
        /// Which.
        reference: GrantRef,
        /// First byte in the page.
        offset: u16,
        /// Whose.
        domain: u16,
    }
);
argument!(
    /// A copy (`gntdev_grant_copy_segment`).
    CopySegment {
        /// In: a [`CopyGrant`] or an address.
        source: [u8; 8],
        /// In: a [`CopyGrant`] or an address.
        dest: [u8; 8],
        /// In: bytes.
        length: u16,
        /// In: which of both are grants, [`CopyFlags`](super::grant::CopyFlags).
        flags: u16,
        /// Out: 0 or a [`Refusal`](super::grant::Refusal).
        status: i16,
        /// Padding.
        padding: [u8; 2],
    }
);
argument!(
    /// The argument of [`gntdev::COPY`].
    CopySegments {
        /// In: how many.
        count: u32,
        /// Padding.
        padding: u32,
        /// In: the address of the first.
        segments: u64,
    }
);
argument!(
    /// The argument of [`gntalloc::ALLOCATE`], before the references.
    Allocate {
        /// In: who may use them.
        domain: u16,
        /// In: [`gntalloc::WRITABLE`].
        flags: u16,
        /// In: how many.
        count: u32,
        /// Out: where to map them in the device's file.
        index: u64,
    }
);
argument!(
    /// The argument of [`gntalloc::FREE`].
    Free {
        /// In: where.
        index: u64,
        /// In: how many.
        count: u32,
        /// Padding.
        padding: u32,
    }
);
argument!(
    /// The argument of [`evtchn::BIND_VIRQ`].
    BindVirq {
        /// In.
        virq: u32,
    }
);
argument!(
    /// The argument of [`evtchn::BIND_INTERDOMAIN`].
    BindInterdomain {
        /// In: whose port.
        remote: u32,
        /// In: which.
        remote_port: Port,
    }
);
argument!(
    /// The argument of [`evtchn::BIND_UNBOUND`].
    BindUnbound {
        /// In: who may connect.
        remote: u32,
    }
);
argument!(
    /// The argument of [`evtchn::UNBIND`].
    Unbind {
        /// In.
        port: Port,
    }
);
argument!(
    /// The argument of [`evtchn::NOTIFY`].
    Notify {
        /// In.
        port: Port,
    }
);
argument!(
    /// The argument of [`evtchn::RESTRICT`].
    Restrict {
        /// In.
        domain: u16,
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    /// What a C program prints of Linux's headers on x86-64.
    #[test]
    fn numbers_are_those_of_the_headers() {
        let numbers = [
            gntdev::MAP,
            gntdev::UNMAP,
            gntdev::SET_MAX_GRANTS,
            gntdev::UNMAP_NOTIFY,
            gntdev::COPY,
            gntalloc::ALLOCATE,
            gntalloc::FREE,
            gntalloc::UNMAP_NOTIFY,
            evtchn::BIND_VIRQ,
            evtchn::BIND_INTERDOMAIN,
            evtchn::BIND_UNBOUND,
            evtchn::UNBIND,
            evtchn::NOTIFY,
            evtchn::RESET,
            evtchn::RESTRICT,
        ];
        let expected = [
            0x18_4700, 0x10_4701, 0x04_4703, 0x10_4707, 0x10_4708, 0x18_4705, 0x10_4706, 0x10_4707,
            0x04_4500, 0x08_4501, 0x04_4502, 0x04_4503, 0x04_4504, 0x00_4505, 0x02_4506,
        ];
        assert_eq!(numbers, expected);
    }

    #[test]
    fn arguments_have_the_sizes_that_their_requests_tell() {
        let size = |request: u32| usize::from(request.to_be_bytes()[1]);
        assert_eq!(size(gntdev::MAP), size_of::<Map>() + size_of::<Grant>());
        assert_eq!(size(gntdev::UNMAP), size_of::<Unmap>());
        assert_eq!(size(gntdev::SET_MAX_GRANTS), size_of::<SetMaxGrants>());
        assert_eq!(size(gntdev::UNMAP_NOTIFY), size_of::<UnmapNotify>());
        assert_eq!(size(gntdev::COPY), size_of::<CopySegments>());
        assert_eq!(size_of::<CopySegment>(), 24);
        assert_eq!(size(gntalloc::ALLOCATE), gntalloc::ALLOCATE_SIZE);
        assert_eq!(size(gntalloc::FREE), size_of::<Free>());
        assert_eq!(size(evtchn::BIND_VIRQ), size_of::<BindVirq>());
        assert_eq!(size(evtchn::BIND_INTERDOMAIN), size_of::<BindInterdomain>());
        assert_eq!(size(evtchn::BIND_UNBOUND), size_of::<BindUnbound>());
        assert_eq!(size(evtchn::UNBIND), size_of::<Unbind>());
        assert_eq!(size(evtchn::NOTIFY), size_of::<Notify>());
        assert_eq!(size(evtchn::RESTRICT), size_of::<Restrict>());
    }
}
