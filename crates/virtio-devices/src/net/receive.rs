use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::EventSet;
use vring::{Chain, Queue};
use zerocopy::FromBytes;

use super::PUBLISHED_TOGETHER;
use super::backend::{FrameReceiver, NetBackend, NetPort};
use super::filter::RxFilter;
use super::shared::Shared;
use super::spec::{Features, HEADER, Header};
use super::statistics::NetStatistics;
use crate::dma::DmaView;
use crate::serve::{Service, Wait};

/// Frames received before other queues have their turn.
const BURST: usize = 256;

/// A receive queue (§5.1.6.4).
///
/// A frame is looked at where the driver cannot change it, and copied to the driver's buffers when there are enough. One that finds too
/// few remains the port's next, while the host's queue fills.
pub(super) struct Receive<B: NetBackend> {
    pub(super) shared: Arc<Shared<B>>,
    pub(super) port: Arc<B::Port>,
    pub(super) features: Features,
}

impl<B: NetBackend> Receive<B> {
    fn burst<M: DmaView>(
        &self,
        queue: &mut Queue<M>,
        memory: &M::M,
        filter: &RxFilter,
        counted: &mut NetStatistics,
    ) -> Result<Wait, vring::Error> {
        let mut receiver = self.port.receiver();
        for done in 1..=BURST {
            let frame = match receiver.peek() {
                Ok(frame) => frame,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Wait::Source),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                // The interface is gone, and would be reported as ready for ever.
                Err(_) => return Ok(Wait::Nudge),
            };
            if !frame
                .get(HEADER..)
                .is_some_and(|frame| filter.accepts(frame))
            {
                counted.receive_filtered += 1;
                receiver.take();
                continue;
            }
            let Some(chain) = queue.pop(&memory)? else {
                return Ok(Wait::Buffers);
            };
            if chain.writable_len() >= frame.len() as u64 {
                self.complete_header(frame, 1);
                fill(queue, chain, frame)?;
                counted.received += 1;
            } else {
                match self.deliver_merged(queue, memory, chain, frame)? {
                    Some(true) => counted.received += 1,
                    Some(false) => counted.receive_dropped += 1,
                    None => return Ok(Wait::Buffers),
                }
            }
            receiver.take();
            if done % PUBLISHED_TOGETHER == 0 {
                queue.publish()?;
            }
        }
        Ok(Wait::Turn)
    }

    /// Delivers a frame to several chains, of which `first` is too small for it. Tells whether it fits into as many as there can be;
    /// `None` if there are too few for now.
    #[cold]
    fn deliver_merged<'m, M: DmaView>(
        &self,
        queue: &mut Queue<M>,
        memory: &'m M::M,
        first: Chain<&'m M::M>,
        frame: &mut [u8],
    ) -> Result<Option<bool>, vring::Error> {
        let mergeable = self.features.contains(Features::MRG_RXBUF);
        let limit = if mergeable { queue.size() } else { 1 };
        let mut room = first.writable_len();
        let mut buffers = 1;
        let mut chains = vec![first];
        while room < frame.len() as u64 {
            let next = if buffers < limit {
                queue.pop(&memory)?
            } else {
                None
            };
            let Some(chain) = next else {
                for chain in chains.into_iter().rev() {
                    queue.put_back(chain)?;
                }
                return Ok((buffers == limit).then_some(false));
            };
            room += chain.writable_len();
            buffers += 1;
            chains.push(chain);
        }
        self.complete_header(frame, buffers);
        let mut rest = &*frame;
        for chain in chains {
            rest = fill(queue, chain, rest)?;
        }
        Ok(Some(true))
    }

    fn complete_header(&self, frame: &mut [u8], buffers: u16) {
        if let Ok((header, _)) = Header::mut_from_prefix(frame) {
            header.num_buffers.set(buffers);
            if !self.features.contains(Features::GUEST_CSUM) {
                header.flags = 0;
            }
        }
    }
}

/// Copies as much of `bytes` as there is room for to a chain, gives it to the driver, and returns the rest.
#[inline]
fn fill<'b, M: DmaView>(
    queue: &mut Queue<M>,
    chain: Chain<&M::M>,
    bytes: &'b [u8],
) -> Result<&'b [u8], vring::Error> {
    let mut rest = bytes;
    for slice in chain.writable() {
        let (now, later) = rest.split_at(slice.len().min(rest.len()));
        slice.copy_from(now);
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    let written = u32::try_from(bytes.len() - rest.len()).unwrap_or(u32::MAX);
    queue.stage(chain, written)?;
    Ok(rest)
}

impl<M: DmaView, B: NetBackend> Service<M> for Receive<B> {
    const POLLS: u32 = super::POLLS;
    const POLLS_SOURCE: bool = B::Port::POLLED;

    fn source(&self) -> Option<(RawFd, EventSet)> {
        Some((self.port.as_raw_fd(), EventSet::IN))
    }

    fn poll_source(&mut self) -> bool {
        self.port.receiver().peek().is_ok()
    }

    fn arm_source(&mut self) -> io::Result<()> {
        self.port.arm()
    }

    fn serve(
        &mut self,
        queue: &mut Queue<M>,
        memory: &M::M,
        _: bool,
    ) -> Result<Wait, vring::Error> {
        let mut counted = NetStatistics::default();
        let settings = self.shared.settings();
        let wait = self.burst(queue, memory, &settings.filter, &mut counted);
        drop(settings);
        self.shared.counters.add(&counted);
        queue.publish()?;
        wait
    }
}
