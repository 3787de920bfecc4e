use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use event_manager::EventSet;
use vring::{Chain, Queue};
use zerocopy::FromBytes;

use super::PUBLISHED_TOGETHER;
use super::backend::{NetBackend, NetPort};
use super::filter::RxFilter;
use super::shared::Shared;
use super::spec::{Features, HEADER, Header, MAX_FRAME};
use crate::dma::DmaView;
use crate::serve::{Service, Wait};

/// Frames received before other queues have their turn.
const BURST: usize = 256;

/// A receive queue (§5.1.6.4).
///
/// A frame is read into memory of the device first. So its addresses are looked at where the driver cannot change them, no buffer is
/// taken before it is known how many are needed, and a frame that finds too few waits here while the host's queue fills.
pub(super) struct Receive<B: NetBackend> {
    shared: Arc<Shared<B>>,
    port: Arc<B::Port>,
    features: Features,
    frame: Box<[u8]>,
    /// Bytes of the frame that waits for buffers, 0 if none does.
    pending: usize,
}

impl<B: NetBackend> Receive<B> {
    pub(super) fn new(shared: Arc<Shared<B>>, port: Arc<B::Port>, features: Features) -> Self {
        Self {
            shared,
            port,
            features,
            frame: vec![0; HEADER + MAX_FRAME].into(),
            pending: 0,
        }
    }

    /// Takes the next frame from the host, if the driver wants it.
    fn fetch(&mut self, filter: &RxFilter) -> io::Result<()> {
        let length = self.port.receive(&mut self.frame)?;
        let wanted = self
            .frame
            .get(HEADER..length)
            .is_some_and(|frame| filter.accepts(frame));
        if wanted {
            self.pending = length;
        } else {
            self.shared.counters.filtered();
        }
        Ok(())
    }

    /// Hands the pending frame to the driver. Returns whether it is done with, or has to wait for buffers.
    fn deliver<'m, M: DmaView>(
        &mut self,
        queue: &mut Queue<M>,
        memory: &'m M::M,
        chains: &mut Vec<Chain<&'m M::M>>,
    ) -> Result<bool, vring::Error> {
        let mergeable = self.features.contains(Features::MRG_RXBUF);
        let limit = if mergeable { queue.size() } else { 1 };
        let mut room = 0;
        let mut buffers: u16 = 0;
        let fits = loop {
            if room >= self.pending as u64 {
                break true;
            }
            if buffers == limit {
                break false;
            }
            let Some(chain) = queue.pop(&memory)? else {
                put_back(queue, chains)?;
                return Ok(false);
            };
            room += chain.writable_len();
            buffers += 1;
            chains.push(chain);
        };
        if fits {
            self.set_header(buffers);
            let mut rest = self.frame.get(..self.pending).unwrap_or_default();
            for chain in chains.drain(..) {
                let mut writer = chain.writer();
                let length = writer.write(rest);
                let written = writer.written();
                rest = rest.get(length..).unwrap_or_default();
                queue.stage(chain, written)?;
            }
        } else {
            // It would not fit into all buffers there can be.
            put_back(queue, chains)?;
        }
        self.shared.counters.received(fits);
        self.pending = 0;
        Ok(true)
    }

    /// Receives a frame, or returns what for it has to wait.
    fn receive<'m, M: DmaView>(
        &mut self,
        filter: &RxFilter,
        queue: &mut Queue<M>,
        memory: &'m M::M,
        chains: &mut Vec<Chain<&'m M::M>>,
    ) -> Result<Option<Wait>, vring::Error> {
        if self.pending == 0 {
            match self.fetch(filter) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Ok(Some(Wait::Source));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The interface is gone, and would be reported as ready for ever.
                Err(_) => return Ok(Some(Wait::Nudge)),
            }
        }
        let waits = self.pending != 0 && !self.deliver(queue, memory, chains)?;
        Ok(waits.then_some(Wait::Buffers))
    }

    /// Completes the frame's header.
    fn set_header(&mut self, buffers: u16) {
        if let Ok((header, _)) = Header::mut_from_prefix(&mut self.frame) {
            header.num_buffers.set(buffers);
            if !self.features.contains(Features::GUEST_CSUM) {
                header.flags = 0;
            }
        }
    }
}

fn put_back<M: DmaView>(
    queue: &mut Queue<M>,
    chains: &mut Vec<Chain<&M::M>>,
) -> Result<(), vring::Error> {
    chains
        .drain(..)
        .rev()
        .try_for_each(|chain| queue.put_back(chain))
}

impl<M: DmaView, B: NetBackend> Service<M> for Receive<B> {
    const POLLS: u32 = super::POLLS;

    fn source(&self) -> Option<(RawFd, EventSet)> {
        Some((self.port.as_raw_fd(), EventSet::IN))
    }

    fn serve(
        &mut self,
        queue: &mut Queue<M>,
        memory: &M::M,
        _: bool,
    ) -> Result<Wait, vring::Error> {
        let shared = Arc::clone(&self.shared);
        let settings = shared.settings();
        let mut chains = Vec::new();
        for done in 1..=BURST {
            if let Some(wait) = self.receive(&settings.filter, queue, memory, &mut chains)? {
                queue.publish()?;
                return Ok(wait);
            }
            if done % PUBLISHED_TOGETHER == 0 {
                queue.publish()?;
            }
        }
        Ok(Wait::Turn)
    }
}
