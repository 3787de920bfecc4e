//! Network devices (`io/netif.h`).

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::argument;
use super::grant::GrantRef;

/// Slots of a packet that every back end takes (`XEN_NETIF_NR_SLOTS_MIN`).
pub const SLOTS: usize = 18;

bitflags! {
    /// What a slot of a packet that the guest sends tells (`NETTXF_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TxFlags: u16 {
        /// The checksum of the protocol is still to be made.
        const CHECKSUM_BLANK = 1;
        /// The checksum is known to be right.
        const DATA_VALIDATED = 2;
        /// The packet goes on in the next slot.
        const MORE_DATA = 4;
        /// The next slot tells more about the packet.
        const EXTRA_INFO = 8;
        const _ = !0;
    }
}

bitflags! {
    /// What a slot of a packet that the guest receives tells (`NETRXF_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RxFlags: u16 {
        /// The checksum is known to be right.
        const DATA_VALIDATED = 1;
        /// The checksum of the protocol is still to be made.
        const CHECKSUM_BLANK = 2;
        /// The packet goes on in the next slot.
        const MORE_DATA = 4;
        /// The next slot tells more about the packet.
        const EXTRA_INFO = 8;
        const _ = !0;
    }
}

/// How a slot ended (`NETIF_RSP_*`).
pub mod status {
    /// Failed.
    pub const ERROR: i16 = -1;
    /// Done. Received slots tell their bytes instead.
    pub const OKAY: i16 = 0;
    /// The slot held extra information: there is nothing to answer.
    pub const NULL: i16 = 1;
}

/// What extra information is about (`XEN_NETIF_EXTRA_TYPE_*`).
pub mod extra {
    /// Segmentation: the size of a segment, 16 bits, and the kind, 8 bits.
    pub const GSO: u8 = 1;
    /// Flag: the next slot has more.
    pub const MORE: u8 = 1;
}

argument!(
    /// Part of a packet that the guest sends (`netif_tx_request`).
    TxRequest {
        /// The page.
        reference: GrantRef,
        /// Where in it.
        offset: u16,
        /// [`TxFlags`].
        flags: u16,
        /// Comes back in the response.
        id: u16,
        /// Bytes: of the whole packet in its first slot.
        size: u16,
    }
);
argument!(
    /// `netif_tx_response`.
    TxResponse {
        /// The request's.
        id: u16,
        /// [`status`].
        status: i16,
    }
);
argument!(
    /// Room for part of a packet (`netif_rx_request`).
    RxRequest {
        /// Comes back in the response.
        id: u16,
        /// Padding.
        padding: u16,
        /// The page.
        reference: GrantRef,
    }
);
argument!(
    /// Part of a packet that the guest receives (`netif_rx_response`).
    RxResponse {
        /// The request's.
        id: u16,
        /// Where it is in the page.
        offset: u16,
        /// [`RxFlags`].
        flags: u16,
        /// Bytes, or [`status::ERROR`].
        status: i16,
    }
);
argument!(
    /// More about a packet (`netif_extra_info`), in a slot of either ring.
    Extra {
        /// [`extra::GSO`] or another.
        kind: u8,
        /// [`extra::MORE`].
        flags: u8,
        /// Segmentation: bytes of a segment.
        gso_size: u16,
        /// Segmentation: 1 is TCP over IPv4, 2 over IPv6.
        gso_kind: u8,
        /// Padding and features.
        padding: [u8; 3],
    }
);
