//! The messages: one a packet, little-endian, with nothing in what a message does not use.
//!
//! An arbiter begins with a [`Welcome`] and the other end of the guest's bell. Then the guest asks, and waits for the answer to each: first
//! [`MEMORY`] for each piece of its memory, with the file that it is in, and [`READY`], then accesses. The bell is a stream: each byte
//! from the arbiter is an interrupt of the guest's device, each byte from the guest the end of one.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What both sides must speak.
pub const VERSION: u32 = 1;
/// BARs of a function.
pub const BARS: usize = 6;
/// Bytes of configuration space that a guest sees: that of conventional PCI.
pub const CONFIG_BYTES: usize = 256;
/// The longest name of a model, and the longest reason for a denial, in bytes of UTF-8.
pub const TEXT_BYTES: usize = 120;

/// Request: a piece of the guest's memory, with the file that it is in.
pub const MEMORY: u32 = 1;
/// Request: that was all memory. The guest takes part from now on.
pub const READY: u32 = 2;
/// Request: read a register.
pub const READ: u32 = 3;
/// Request: write a register.
pub const WRITE: u32 = 4;
/// Request: reset the device, as far as this guest is concerned.
pub const RESET: u32 = 5;

/// Answer: done, or allowed.
pub const DONE: u32 = 0;
/// Answer: the model denies it, and nothing else is to happen.
pub const DENIED: u32 = 1;
/// Answer: the model denies it, and wants the guest's machine stopped.
pub const DENIED_STOP: u32 = 2;
/// Answer: the guest's memory cannot be had. The connection ends.
pub const REFUSED: u32 = 3;

/// What the arbiter says first.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Welcome {
    /// [`VERSION`].
    pub version: U32,
    /// Whether the device has an interrupt pin.
    pub pin: U32,
    /// Bytes of each BAR, 0 if there is none.
    pub bars: [U64; BARS],
    /// Configuration space as it was at the start.
    pub config: [u8; CONFIG_BYTES],
    /// The address of the function on the arbiter's machine, filled up with zeroes.
    pub address: [u8; 16],
    /// What the model calls itself, filled up with zeroes.
    pub model: [u8; TEXT_BYTES],
}

/// What a guest asks for.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable,
)]
#[repr(C)]
pub struct Request {
    /// [`MEMORY`] … [`RESET`].
    pub kind: U32,
    /// Of an access: number of the BAR.
    pub bar: u8,
    /// Of an access: 1, 2, 4 or 8 bytes.
    pub width: u8,
    /// Zero.
    pub reserved: [u8; 2],
    /// Of an access: offset in the BAR. Of memory: guest-physical address.
    pub address: U64,
    /// Of a write: the value. Of memory: size in bytes.
    pub value: U64,
    /// Of memory: where in the file it begins.
    pub offset: U64,
}

/// What a guest is answered.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct Answer {
    /// [`DONE`] … [`REFUSED`].
    pub status: U32,
    /// Zero.
    pub reserved: U32,
    /// Of a read that is done: the value.
    pub value: U64,
    /// If it is not done: why, filled up with zeroes.
    pub reason: [u8; TEXT_BYTES],
}

/// What fits of a text.
pub fn text<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    bytes
}

/// The text again; what is none is replaced.
pub fn words(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0);
    let text = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}
