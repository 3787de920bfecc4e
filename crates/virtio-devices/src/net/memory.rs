use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::backend::{FrameReceiver, FrameSender, NetBackend, NetPort};
use super::spec::Features;

/// Frames one direction of a [`MemoryPort`] holds; further ones are dropped, as a network does.
pub const MEMORY_PORT_FRAMES: usize = 256;

/// A network in memory: the device's end is a back-end, the other end is for tests, fuzzers and in-process switches.
#[derive(Debug)]
pub struct MemoryNet {
    ports: Vec<Arc<MemoryPort>>,
    offloads: Features,
    guest_offloads: Mutex<Features>,
}

/// One queue pair of a [`MemoryNet`]. Frames carry their [`Header`](super::spec::Header), in both directions.
#[derive(Debug)]
pub struct MemoryPort {
    /// Readable while there is a frame for the driver.
    readable: EventFd,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    to_driver: VecDeque<Vec<u8>>,
    /// The frame that the device works on.
    next: Option<Vec<u8>>,
    from_driver: VecDeque<Vec<u8>>,
    enabled: bool,
}

impl MemoryNet {
    /// A network that offers the checksum and segmentation features of `offloads`, with this many queue pairs.
    ///
    /// # Errors
    /// The operating system has no event descriptors left.
    pub fn new(queue_pairs: u16, offloads: Features) -> io::Result<Self> {
        let port = || {
            Ok(Arc::new(MemoryPort {
                readable: EventFd::new(EFD_NONBLOCK)?,
                state: Mutex::new(State {
                    to_driver: VecDeque::new(),
                    next: None,
                    from_driver: VecDeque::new(),
                    enabled: true,
                }),
            }))
        };
        Ok(Self {
            ports: (0..queue_pairs)
                .map(|_| port())
                .collect::<io::Result<_>>()?,
            offloads,
            guest_offloads: Mutex::new(Features::empty()),
        })
    }

    /// The receive offloads that were set last.
    pub fn guest_offloads(&self) -> Features {
        *self
            .guest_offloads
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl MemoryPort {
    /// Hands a frame to the driver. Returns whether there was room for it.
    pub fn inject(&self, frame: Vec<u8>) -> bool {
        let mut state = self.state();
        if state.to_driver.len() == MEMORY_PORT_FRAMES {
            return false;
        }
        state.to_driver.push_back(frame);
        self.readable.write(1).is_ok()
    }

    /// Takes the oldest frame the driver sent.
    pub fn sent(&self) -> Option<Vec<u8>> {
        self.state().from_driver.pop_front()
    }

    /// How many frames the device has not looked at yet.
    pub fn pending(&self) -> usize {
        self.state().to_driver.len()
    }

    /// Whether the queue pair is in use.
    pub fn enabled(&self) -> bool {
        self.state().enabled
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl NetBackend for MemoryNet {
    type Port = MemoryPort;

    fn ports(&self) -> &[Arc<MemoryPort>] {
        &self.ports
    }

    fn offloads(&self) -> Features {
        self.offloads
    }

    fn set_guest_offloads(&self, offloads: Features) -> io::Result<()> {
        *self
            .guest_offloads
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = offloads;
        Ok(())
    }
}

impl NetPort for MemoryPort {
    type Sender<'p> = &'p Self;
    type Receiver<'p> = MemoryReceiver<'p>;
    const POLLED: bool = true;

    fn sender(&self) -> &Self {
        self
    }

    fn receiver(&self) -> MemoryReceiver<'_> {
        MemoryReceiver {
            readable: &self.readable,
            state: self.state(),
        }
    }

    fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        self.state().enabled = enabled;
        Ok(())
    }
}

impl FrameSender for &MemoryPort {
    fn send<'a, B: BitmapSlice>(
        &mut self,
        frame: impl Iterator<Item = VolatileSlice<'a, B>>,
    ) -> io::Result<()> {
        let mut bytes = Vec::new();
        for slice in frame {
            let start = bytes.len();
            bytes.resize(start + slice.len(), 0);
            slice.copy_to(bytes.split_at_mut(start).1);
        }
        let mut state = self.state();
        if state.from_driver.len() == MEMORY_PORT_FRAMES {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        state.from_driver.push_back(bytes);
        Ok(())
    }
}

/// Receives from a [`MemoryNet`].
#[derive(Debug)]
pub struct MemoryReceiver<'p> {
    readable: &'p EventFd,
    state: MutexGuard<'p, State>,
}

impl FrameReceiver for MemoryReceiver<'_> {
    fn peek(&mut self) -> io::Result<&mut [u8]> {
        let State {
            next, to_driver, ..
        } = &mut *self.state;
        if next.is_none() {
            *next = to_driver.pop_front();
            if next.is_some() && to_driver.is_empty() {
                self.readable.read()?;
            }
        }
        match next {
            Some(frame) => Ok(frame),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn take(&mut self) {
        self.state.next = None;
    }
}

impl AsRawFd for MemoryPort {
    fn as_raw_fd(&self) -> RawFd {
        self.readable.as_raw_fd()
    }
}
