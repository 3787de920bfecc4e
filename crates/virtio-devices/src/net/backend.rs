use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

use super::spec::Features;

/// The host's end of one queue pair: takes the frames a driver sends and has those it is to receive.
///
/// Every frame begins with a [`Header`](super::spec::Header). Frames go in bursts: what a burst needs once, such as a lock, is held by
/// the [`FrameSender`] or [`FrameReceiver`] that it goes through. One thread sends and another receives.
pub trait NetPort: AsRawFd + Send + Sync + 'static {
    /// What a burst of frames is sent through.
    type Sender<'p>: FrameSender;
    /// What a burst of frames is received from.
    type Receiver<'p>: FrameReceiver;

    /// Begins a burst of the driver's frames. All of them are on their way when the sender is dropped.
    fn sender(&self) -> Self::Sender<'_>;

    /// Begins a burst of frames for the driver.
    fn receiver(&self) -> Self::Receiver<'_>;

    /// Whether it costs no system call to find that there is no frame, so that it may be asked often before its file descriptor is
    /// waited for.
    const POLLED: bool;

    /// Has the file descriptor be readable, level-triggered, as soon and as long as there is a frame, until one is received. To be
    /// called before it is waited for.
    fn arm(&self) -> io::Result<()> {
        Ok(())
    }

    /// Whether the host may hand frames to this port, because its queue pair is in use.
    fn set_enabled(&self, enabled: bool) -> io::Result<()>;
}

/// Sends a burst of frames.
pub trait FrameSender {
    /// Sends one frame, whose bytes are those of all slices in turn. A slice is guest memory: it may change at any time.
    ///
    /// # Errors
    /// The frame was not sent. The device counts it as dropped.
    fn send<'a, B: BitmapSlice>(
        &mut self,
        frame: impl Iterator<Item = VolatileSlice<'a, B>>,
    ) -> io::Result<()>;
}

/// Receives a burst of frames.
pub trait FrameReceiver {
    /// The next frame, in the host's memory, where the driver cannot change it. It is the next one until it is
    /// [taken](Self::take), also for later bursts. The device completes its header.
    ///
    /// # Errors
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there is none.
    fn peek(&mut self) -> io::Result<&mut [u8]>;

    /// Goes on to the frame after the next one.
    fn take(&mut self);
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
