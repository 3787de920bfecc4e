//! A cable in this process, from one device to another or back to itself.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::backend::{NetBackend, NetPort};
use super::spec::Features;

/// Frames on their way in one direction of a queue pair; further ones are dropped, as a network does.
pub const CABLE_FRAMES: usize = 1024;

/// One end of a cable: what a device sends into it comes out at the other, on the queue pair of the same number.
///
/// There are no offloads: the other end need not understand them.
#[derive(Debug)]
pub struct Cable {
    ports: Vec<Arc<CablePort>>,
}

/// One queue pair of a [`Cable`].
#[derive(Debug)]
pub struct CablePort {
    out: Arc<Lane>,
    back: Arc<Lane>,
}

/// One direction.
#[derive(Debug)]
struct Lane {
    /// Readable while there is a frame.
    readable: EventFd,
    frames: Mutex<Frames>,
}

#[derive(Debug, Default)]
struct Frames {
    queue: VecDeque<Vec<u8>>,
    /// Emptied frames, whose memory is used again.
    spare: Vec<Vec<u8>>,
}

impl Lane {
    fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            readable: EventFd::new(EFD_NONBLOCK)?,
            frames: Mutex::default(),
        }))
    }
}

impl Cable {
    /// Both ends of a cable with this many queue pairs.
    ///
    /// # Errors
    /// The operating system has no event descriptors left.
    pub fn new(queue_pairs: u16) -> io::Result<(Self, Self)> {
        let mut ends = (Vec::new(), Vec::new());
        for _ in 0..queue_pairs {
            let (there, back) = (Lane::new()?, Lane::new()?);
            ends.0.push(Arc::new(CablePort {
                out: Arc::clone(&there),
                back: Arc::clone(&back),
            }));
            ends.1.push(Arc::new(CablePort {
                out: back,
                back: there,
            }));
        }
        Ok((Self { ports: ends.0 }, Self { ports: ends.1 }))
    }

    /// A cable that leads back to where it comes from.
    ///
    /// # Errors
    /// The operating system has no event descriptors left.
    pub fn looped(queue_pairs: u16) -> io::Result<Self> {
        let port = || {
            let out = Lane::new()?;
            let back = Arc::clone(&out);
            Ok(Arc::new(CablePort { out, back }))
        };
        let ports = (0..queue_pairs).map(|_| port());
        Ok(Self {
            ports: ports.collect::<io::Result<_>>()?,
        })
    }
}

impl NetBackend for Cable {
    type Port = CablePort;

    fn ports(&self) -> &[Arc<CablePort>] {
        &self.ports
    }

    fn offloads(&self) -> Features {
        Features::empty()
    }

    fn set_guest_offloads(&self, _: Features) -> io::Result<()> {
        Ok(())
    }
}

impl NetPort for CablePort {
    fn send<'a, B: BitmapSlice>(
        &self,
        frame: impl Iterator<Item = VolatileSlice<'a, B>>,
    ) -> io::Result<()> {
        let lane = &self.out;
        let mut frames = lane.frames.lock().unwrap_or_else(PoisonError::into_inner);
        if frames.queue.len() == CABLE_FRAMES {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut bytes = frames.spare.pop().unwrap_or_default();
        bytes.clear();
        for slice in frame {
            let start = bytes.len();
            bytes.resize(start.saturating_add(slice.len()), 0);
            if let Some(end) = bytes.get_mut(start..) {
                slice.copy_to(end);
            }
        }
        frames.queue.push_back(bytes);
        if frames.queue.len() == 1 {
            lane.readable.write(1)?;
        }
        Ok(())
    }

    fn receive(&self, frame: &mut [u8]) -> io::Result<usize> {
        let lane = &self.back;
        let mut frames = lane.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(next) = frames.queue.pop_front() else {
            return Err(io::ErrorKind::WouldBlock.into());
        };
        if frames.queue.is_empty() {
            lane.readable.read()?;
        }
        let len = next.len().min(frame.len());
        for (to, from) in frame.iter_mut().zip(&next) {
            *to = *from;
        }
        frames.spare.push(next);
        Ok(len)
    }

    fn set_enabled(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

impl AsRawFd for CablePort {
    fn as_raw_fd(&self) -> RawFd {
        self.back.readable.as_raw_fd()
    }
}
