//! Network devices over two rings, one for each direction, which may have an event channel each.

mod back;
mod front;
mod transport;

pub use back::{Delivery, NetBack, NetError};
pub use front::{Fragment, NetFront, Received};
pub use transport::{Network, Transport, complete_checksum};

/// What is known of a packet's checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing: it is there, and may be wrong.
    #[default]
    Unknown,
    /// It is right.
    Validated,
    /// It is still to be made.
    Blank,
}

/// How a packet is to be cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// Bytes of a segment's payload.
    pub size: u16,
    /// 1 is TCP over IPv4, 2 over IPv6.
    pub kind: u8,
}

/// A packet, from its Ethernet header on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its checksum.
    pub checksum: Checksum,
    /// To be cut.
    pub segmentation: Option<Segmentation>,
}
