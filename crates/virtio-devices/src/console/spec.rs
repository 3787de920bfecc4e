//! The wire layout of a console device (Virtio 1.3, §5.3).

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

bitflags! {
    /// Feature bits of the device (§5.3.3).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Features: u64 {
        /// The configuration space has the console's size.
        const SIZE = 1 << 0;
        /// There are several ports and control queues.
        const MULTIPORT = 1 << 1;
        /// The configuration space takes characters.
        const EMERG_WRITE = 1 << 2;
    }
}

/// `struct virtio_console_config` (§5.3.4).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes, KnownLayout, Unaligned)]
pub struct Config {
    /// Columns of port 0.
    pub cols: U16,
    /// Rows of port 0.
    pub rows: U16,
    /// Ports there can be.
    pub max_nr_ports: U32,
    /// Takes a character in its low byte at any time (§5.3.5).
    pub emerg_wr: U32,
}

/// `struct virtio_console_control` (§5.3.6.2): a message on a control queue.
#[repr(C)]
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
)]
pub struct Control {
    /// Which port.
    pub id: U32,
    /// One of [`event`].
    pub event: U16,
    /// What the event says it is.
    pub value: U16,
}

/// `struct virtio_console_resize` (§5.3.6.2): follows [`Control`] in a [`RESIZE`](event::RESIZE).
///
/// Linux took the two the other way round until 2025.
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes, KnownLayout, Unaligned)]
pub struct Resize {
    /// Columns.
    pub cols: U16,
    /// Rows.
    pub rows: U16,
}

/// Values of [`Control::event`] (§5.3.6.2).
pub mod event {
    /// From the driver: it takes messages if `value` is 1.
    pub const DEVICE_READY: u16 = 0;
    /// From the device: there is a new port.
    pub const DEVICE_ADD: u16 = 1;
    /// From the driver: it uses the port if `value` is 1.
    pub const PORT_READY: u16 = 3;
    /// From the device: the port is for a text console.
    pub const CONSOLE_PORT: u16 = 4;
    /// From the device: the port's size, in what follows.
    pub const RESIZE: u16 = 5;
    /// From both: the port is open on that side if `value` is 1.
    pub const PORT_OPEN: u16 = 6;
    /// From the device: the port's name, in what follows.
    pub const PORT_NAME: u16 = 7;
}

/// The receive queue for control messages (§5.3.2).
pub const CONTROL_RECEIVE: u16 = 2;
/// The transmit queue for control messages (§5.3.2).
pub const CONTROL_TRANSMIT: u16 = 3;

/// The receive queue of a port (§5.3.2); the transmit queue follows it.
pub const fn receive_queue(port: u16) -> u16 {
    if port == 0 { 0 } else { 2 * port + 2 }
}
