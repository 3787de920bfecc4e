//! A cable in this process, from one device to another or back to itself.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::backend::{FrameReceiver, FrameSender, NetBackend, NetPort};
use super::spec::Features;

/// Frames on their way in one direction of a queue pair; further ones are dropped, as a network does.
pub const CABLE_FRAMES: usize = 1024;

/// Emptied batches that are kept. A driver can make each of them as large as all frames that may be on their way.
const SPARE: usize = 4;

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

/// One direction. Frames travel in batches, so that the two ends meet once a burst.
#[derive(Debug)]
struct Lane {
    /// Readable if there came a frame since it was armed.
    readable: EventFd,
    batches: Mutex<Batches>,
    /// What is received from now.
    receiving: Mutex<Received>,
}

#[derive(Debug, Default)]
struct Batches {
    queue: VecDeque<Batch>,
    /// Frames in `queue`.
    frames: usize,
    /// Emptied batches, whose memory is used again.
    spare: Vec<Batch>,
    /// The receiver waits for `readable`.
    armed: bool,
    /// It is readable.
    signalled: bool,
}

/// Frames, one after the other.
#[derive(Debug, Default)]
struct Batch {
    /// Their bytes, and old ones after them.
    bytes: Vec<u8>,
    /// Where each ends.
    ends: Vec<usize>,
}

/// A batch of which some frames were received.
#[derive(Debug, Default)]
struct Received {
    batch: Batch,
    /// How many, and where they end.
    frames: usize,
    start: usize,
}

impl Lane {
    fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            readable: EventFd::new(EFD_NONBLOCK)?,
            batches: Mutex::default(),
            receiving: Mutex::default(),
        }))
    }

    fn batches(&self) -> MutexGuard<'_, Batches> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the receiver up, if it waits.
    fn signal(&self, batches: &mut Batches) -> io::Result<()> {
        if batches.armed && !batches.signalled {
            self.readable.write(1)?;
            batches.signalled = true;
        }
        batches.armed = false;
        Ok(())
    }

    /// Takes the oldest batch in the place of one that is used up.
    fn exchange(&self, old: &mut Received) -> io::Result<()> {
        let mut batches = self.batches();
        if batches.signalled {
            self.readable.read()?;
            batches.signalled = false;
        }
        let batch = batches.queue.pop_front().ok_or(io::ErrorKind::WouldBlock)?;
        batches.frames -= batch.ends.len();
        let Received { batch: old, .. } = std::mem::replace(
            old,
            Received {
                batch,
                ..Received::default()
            },
        );
        batches.keep(old);
        Ok(())
    }
}

impl Batches {
    /// Keeps a batch's memory, or frees it.
    fn keep(&mut self, mut batch: Batch) {
        if self.spare.len() < SPARE {
            batch.ends.clear();
            self.spare.push(batch);
        }
    }
}

impl Batch {
    fn append<'a, B: BitmapSlice>(&mut self, frame: impl Iterator<Item = VolatileSlice<'a, B>>) {
        let mut end = self.ends.last().copied().unwrap_or_default();
        for slice in frame {
            let start = end;
            end = start.saturating_add(slice.len());
            if end > self.bytes.len() {
                self.bytes.resize(end, 0);
            }
            if let Some(bytes) = self.bytes.get_mut(start..end) {
                slice.copy_to(bytes);
            }
        }
        self.ends.push(end);
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
    type Sender<'p> = CableSender<'p>;
    type Receiver<'p> = CableReceiver<'p>;
    const POLLED: bool = true;

    fn sender(&self) -> CableSender<'_> {
        let mut batches = self.out.batches();
        CableSender {
            lane: &self.out,
            room: CABLE_FRAMES.saturating_sub(batches.frames),
            batch: batches.spare.pop().unwrap_or_default(),
        }
    }

    fn receiver(&self) -> CableReceiver<'_> {
        let receiving = self.back.receiving.lock();
        CableReceiver {
            lane: &self.back,
            received: receiving.unwrap_or_else(PoisonError::into_inner),
        }
    }

    fn arm(&self) -> io::Result<()> {
        let mut batches = self.back.batches();
        batches.armed = true;
        if batches.queue.is_empty() {
            Ok(())
        } else {
            self.back.signal(&mut batches)
        }
    }

    fn set_enabled(&self, _: bool) -> io::Result<()> {
        Ok(())
    }
}

/// Sends into a [`Cable`].
#[derive(Debug)]
pub struct CableSender<'p> {
    lane: &'p Lane,
    /// Frames it may hold.
    room: usize,
    batch: Batch,
}

impl FrameSender for CableSender<'_> {
    fn send<'a, B: BitmapSlice>(
        &mut self,
        frame: impl Iterator<Item = VolatileSlice<'a, B>>,
    ) -> io::Result<()> {
        if self.batch.ends.len() >= self.room {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.batch.append(frame);
        Ok(())
    }
}

impl Drop for CableSender<'_> {
    fn drop(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        let mut batches = self.lane.batches();
        if batch.ends.is_empty() {
            batches.keep(batch);
            return;
        }
        batches.frames += batch.ends.len();
        batches.queue.push_back(batch);
        // Fails only if the counter is full, and then the descriptor is readable.
        let _ = self.lane.signal(&mut batches);
    }
}

/// Receives from a [`Cable`].
#[derive(Debug)]
pub struct CableReceiver<'p> {
    lane: &'p Lane,
    received: MutexGuard<'p, Received>,
}

impl FrameReceiver for CableReceiver<'_> {
    fn peek(&mut self) -> io::Result<&mut [u8]> {
        let received = &mut *self.received;
        if received.frames == received.batch.ends.len() {
            self.lane.exchange(received)?;
        }
        let Received {
            batch,
            frames,
            start,
        } = received;
        let end = batch.ends.get(*frames).copied().unwrap_or_default();
        Ok(batch.bytes.get_mut(*start..end).unwrap_or_default())
    }

    fn take(&mut self) {
        let Received {
            batch,
            frames,
            start,
        } = &mut *self.received;
        if let Some(end) = batch.ends.get(*frames) {
            *start = *end;
            *frames += 1;
        }
    }
}

impl AsRawFd for CablePort {
    fn as_raw_fd(&self) -> RawFd {
        self.back.readable.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Host memory from a guest's frames is bounded (CVE-2016-5403 and its kind): batches that were received are not all kept.
    #[test]
    fn few_emptied_batches_are_kept() {
        let cable = Cable::looped(1).unwrap();
        let port = cable.ports.first().unwrap();
        let mut bytes = [1; 64];
        for _ in 0..100 {
            let frame = VolatileSlice::from(&mut bytes[..]);
            port.sender().send([frame].into_iter()).unwrap();
        }
        let mut receiver = port.receiver();
        for _ in 0..100 {
            assert_eq!(receiver.peek().unwrap(), [1; 64]);
            receiver.take();
        }
        assert_eq!(port.out.batches().spare.len(), SPARE);
    }
}
