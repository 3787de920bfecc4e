use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::spec::Features;

/// The host's end of one queue pair: takes the frames a driver sends and has those it is to receive.
///
/// Every frame begins with a [`Header`](super::spec::Header). The file descriptor is readable, level-triggered, while
/// [`receive`](Self::receive) has something to give. One thread sends and another receives.
pub trait NetPort: AsRawFd + Send + Sync + 'static {
    /// Sends one frame, whose bytes are those of all slices in turn. A slice is guest memory: it may change at any time.
    ///
    /// # Errors
    /// The frame was not sent. The device counts it as dropped.
    fn send<'a, B: BitmapSlice>(
        &self,
        frame: impl Iterator<Item = VolatileSlice<'a, B>>,
    ) -> io::Result<()>;

    /// Takes the next frame and returns its length in bytes. What does not fit into `frame` is lost.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is none.
    fn receive(&self, frame: &mut [u8]) -> io::Result<usize>;

    /// Whether the host may hand frames to this port, because its queue pair is in use.
    fn set_enabled(&self, enabled: bool) -> io::Result<()>;
}

/// A host network interface with one [`NetPort`] a queue pair.
pub trait NetBackend: Send + Sync + 'static {
    /// The host's end of a queue pair.
    type Port: NetPort;

    /// All ports; the number of queue pairs, at least 1.
    fn ports(&self) -> &[Arc<Self::Port>];

    /// The offloads it can do: of [`Features`], the checksum and segmentation bits in both directions.
    fn offloads(&self) -> Features;

    /// Sets what the driver takes: `GUEST_` bits of what [`offloads`](Self::offloads) offered. The interface completes
    /// checksums and segments for a driver that does not.
    fn set_guest_offloads(&self, offloads: Features) -> io::Result<()>;
}
