//! The wire layout of a network device (Virtio 1.3, §5.1).

use bitflags::bitflags;
use serde::{Deserialize, Serialize};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of the largest Ethernet frame: the largest IPv6 packet with its headers (§5.1.6.3) and a VLAN tag.
pub const MAX_FRAME: usize = 65_589 + VLAN_TAG;

/// Bytes of an 802.1Q tag.
pub const VLAN_TAG: usize = 4;

/// Destination, source and type of an Ethernet frame.
pub const ETHERNET_HEADER: usize = 14;

bitflags! {
    /// Feature bits of the device (§5.1.3).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Features: u64 {
        /// The device completes partial checksums of frames the driver sends.
        const CSUM = 1 << 0;
        /// The driver takes frames with partial checksums.
        const GUEST_CSUM = 1 << 1;
        /// The driver can change its receive offloads later.
        const CTRL_GUEST_OFFLOADS = 1 << 2;
        /// The device has a hardware address.
        const MAC = 1 << 5;
        /// The driver takes unsegmented TCP over IPv4.
        const GUEST_TSO4 = 1 << 7;
        /// The driver takes unsegmented TCP over IPv6.
        const GUEST_TSO6 = 1 << 8;
        /// The driver takes unsegmented TCP with explicit congestion notification.
        const GUEST_ECN = 1 << 9;
        /// The device segments TCP over IPv4.
        const HOST_TSO4 = 1 << 11;
        /// The device segments TCP over IPv6.
        const HOST_TSO6 = 1 << 12;
        /// The device segments TCP with explicit congestion notification.
        const HOST_ECN = 1 << 13;
        /// The driver takes a frame spread over several receive buffers.
        const MRG_RXBUF = 1 << 15;
        /// The configuration space has the link's status.
        const STATUS = 1 << 16;
        /// There is a control queue.
        const CTRL_VQ = 1 << 17;
        /// The control queue sets receive modes and the address filter.
        const CTRL_RX = 1 << 18;
        /// The control queue sets the VLAN filter.
        const CTRL_VLAN = 1 << 19;
        /// The control queue sets the further receive modes.
        const CTRL_RX_EXTRA = 1 << 20;
        /// There are several queue pairs.
        const MQ = 1 << 22;
        /// The control queue sets the hardware address.
        const CTRL_MAC_ADDR = 1 << 23;
    }
}

impl Features {
    /// What the device may leave to the driver in frames on their way to it.
    pub const GUEST_OFFLOADS: Self = Self::GUEST_CSUM
        .union(Self::GUEST_TSO4)
        .union(Self::GUEST_TSO6)
        .union(Self::GUEST_ECN);

    /// What the driver may leave to the device in frames on their way from it.
    pub const HOST_OFFLOADS: Self = Self::CSUM
        .union(Self::HOST_TSO4)
        .union(Self::HOST_TSO6)
        .union(Self::HOST_ECN);
}

bitflags! {
    /// `status` in the configuration space (§5.1.4).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct LinkStatus: u16 {
        /// The link is up.
        const LINK_UP = 1;
    }
}

/// `struct virtio_net_config` (§5.1.4), up to the last field of a feature that is offered.
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes, KnownLayout, Unaligned)]
pub struct Config {
    /// The hardware address.
    pub mac: [u8; 6],
    /// [`LinkStatus`].
    pub status: U16,
    /// Queue pairs, 1 to 0x8000.
    pub max_virtqueue_pairs: U16,
}

/// `struct virtio_net_hdr` without a hash report (§5.1.6), in front of each frame in both directions.
#[repr(C)]
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout,
    Unaligned,
)]
pub struct Header {
    /// [`HeaderFlags`].
    pub flags: u8,
    /// One of the `GSO_` values.
    pub gso_type: u8,
    /// Bytes of all protocol headers, a hint.
    pub hdr_len: U16,
    /// Bytes of payload of each segment.
    pub gso_size: U16,
    /// Where the checksum starts, in bytes from the frame's start.
    pub csum_start: U16,
    /// Where the checksum is to be stored, in bytes from `csum_start`.
    pub csum_offset: U16,
    /// Receive buffers that hold this frame (§5.1.6.3.2).
    pub num_buffers: U16,
}

/// Bytes of a [`Header`].
pub const HEADER: usize = size_of::<Header>();

bitflags! {
    /// `flags` of a [`Header`] (§5.1.6).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct HeaderFlags: u8 {
        /// The checksum is partial.
        const NEEDS_CSUM = 1;
        /// The checksum was checked.
        const DATA_VALID = 2;
    }
}

/// `gso_type`: not segmented (§5.1.6).
pub const GSO_NONE: u8 = 0;
/// `gso_type`: TCP over IPv4 to be segmented (§5.1.6).
pub const GSO_TCPV4: u8 = 1;
/// `gso_type`: TCP over IPv6 to be segmented (§5.1.6).
pub const GSO_TCPV6: u8 = 4;

/// Class and command at the start of each request on the control queue (§5.1.6.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
pub struct ControlHeader {
    /// Which group of commands: `CTRL_RX`, `CTRL_MAC`, `CTRL_VLAN`, `CTRL_MQ` or `CTRL_GUEST_OFFLOADS`.
    pub class: u8,
    /// Which command of the group.
    pub command: u8,
}

/// A length in front of a table of addresses (§5.1.6.5.2).
pub type MacTableLength = U32;

/// `ack`: the command was carried out (§5.1.6.5).
pub const ACK_OK: u8 = 0;
/// `ack`: the command was refused (§5.1.6.5).
pub const ACK_ERR: u8 = 1;

/// Class of the receive modes (§5.1.6.5.1).
pub const CTRL_RX: u8 = 0;
/// Receive everything.
pub const CTRL_RX_PROMISC: u8 = 0;
/// Receive all multicast.
pub const CTRL_RX_ALLMULTI: u8 = 1;
/// Receive all unicast.
pub const CTRL_RX_ALLUNI: u8 = 2;
/// Receive no multicast.
pub const CTRL_RX_NOMULTI: u8 = 3;
/// Receive no unicast.
pub const CTRL_RX_NOUNI: u8 = 4;
/// Receive no broadcast.
pub const CTRL_RX_NOBCAST: u8 = 5;

/// Class of the hardware addresses (§5.1.6.5.2).
pub const CTRL_MAC: u8 = 1;
/// Set the address filter.
pub const CTRL_MAC_TABLE_SET: u8 = 0;
/// Set the hardware address.
pub const CTRL_MAC_ADDR_SET: u8 = 1;

/// Class of the VLAN filter (§5.1.6.5.3).
pub const CTRL_VLAN: u8 = 2;
/// Receive a VLAN.
pub const CTRL_VLAN_ADD: u8 = 0;
/// Receive a VLAN no more.
pub const CTRL_VLAN_DEL: u8 = 1;

/// Class of the queue pairs (§5.1.6.5.6).
pub const CTRL_MQ: u8 = 4;
/// Set how many queue pairs are in use.
pub const CTRL_MQ_VQ_PAIRS_SET: u8 = 0;

/// Class of the receive offloads (§5.1.6.5.8).
pub const CTRL_GUEST_OFFLOADS: u8 = 5;
/// Set the receive offloads: a 64-bit word of `GUEST_` [`Features`].
pub const CTRL_GUEST_OFFLOADS_SET: u8 = 0;
