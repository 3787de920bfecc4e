//! A network without end, to measure with.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::backend::{FrameReceiver, FrameSender, NetBackend, NetPort};
use super::spec::{Features, HEADER, MAX_FRAME};

/// A network that always has another frame of 60 bytes (64 with the checksum that no virtio device sees), and takes all that are sent.
#[derive(Debug)]
pub struct FloodNet {
    ports: Vec<Arc<FloodPort>>,
}

/// One queue pair of a [`FloodNet`].
#[derive(Debug)]
pub struct FloodPort {
    /// Always readable.
    readable: EventFd,
    frame: Mutex<[u8; HEADER + FRAME]>,
    /// Where frames are copied to, as any network would have to.
    sink: Mutex<Box<[u8]>>,
}

/// Bytes of a frame.
const FRAME: usize = 60;
/// A broadcast from a local address, of the type for experiments (IEEE 802, 0x88b5).
const ETHERNET: [u8; 14] = [
    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 0, 0x88, 0xb5,
];

impl FloodNet {
    /// A network with this many queue pairs.
    ///
    /// # Errors
    /// The operating system has no event descriptors left.
    pub fn new(queue_pairs: u16) -> io::Result<Self> {
        let mut frame = [0; HEADER + FRAME];
        for (to, from) in frame.iter_mut().skip(HEADER).zip(ETHERNET) {
            *to = from;
        }
        let port = || {
            let readable = EventFd::new(EFD_NONBLOCK)?;
            readable.write(1)?;
            Ok(Arc::new(FloodPort {
                readable,
                frame: Mutex::new(frame),
                sink: Mutex::new(vec![0; HEADER + MAX_FRAME].into()),
            }))
        };
        Ok(Self {
            ports: (0..queue_pairs)
                .map(|_| port())
                .collect::<io::Result<_>>()?,
        })
    }
}

impl NetBackend for FloodNet {
    type Port = FloodPort;

    fn ports(&self) -> &[Arc<FloodPort>] {
        &self.ports
    }

    fn offloads(&self) -> Features {
        Features::empty()
    }

    fn set_guest_offloads(&self, _: Features) -> io::Result<()> {
        Ok(())
    }
}

/// Sends to a [`FloodNet`].
#[derive(Debug)]
pub struct FloodSender<'p>(MutexGuard<'p, Box<[u8]>>);

/// Receives from a [`FloodNet`].
#[derive(Debug)]
pub struct FloodReceiver<'p>(MutexGuard<'p, [u8; HEADER + FRAME]>);

impl NetPort for FloodPort {
    type Sender<'p> = FloodSender<'p>;
    type Receiver<'p> = FloodReceiver<'p>;
    const POLLED: bool = true;

    fn sender(&self) -> FloodSender<'_> {
        FloodSender(self.sink.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn receiver(&self) -> FloodReceiver<'_> {
        FloodReceiver(self.frame.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_enabled(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

impl FrameSender for FloodSender<'_> {
    fn send<'a, B: BitmapSlice>(
        &mut self,
        frame: impl Iterator<Item = VolatileSlice<'a, B>>,
    ) -> io::Result<()> {
        let mut rest = &mut self.0[..];
        for slice in frame {
            let copied = slice.copy_to(rest);
            rest = rest.get_mut(copied..).unwrap_or_default();
        }
        Ok(())
    }
}

impl FrameReceiver for FloodReceiver<'_> {
    fn peek(&mut self) -> io::Result<&mut [u8]> {
        Ok(&mut self.0[..])
    }

    fn take(&mut self) {}
}

impl AsRawFd for FloodPort {
    fn as_raw_fd(&self) -> RawFd {
        self.readable.as_raw_fd()
    }
}
