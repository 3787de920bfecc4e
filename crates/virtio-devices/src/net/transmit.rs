use std::sync::Arc;

use vring::Queue;

use super::PUBLISHED_TOGETHER;
use super::backend::{FrameSender as _, NetBackend, NetPort as _};
use super::shared::Shared;
use super::spec::{ETHERNET_HEADER, HEADER, MAX_FRAME};
use super::statistics::NetStatistics;
use crate::dma::DmaView;
use crate::serve::{Service, Wait};

/// Frames sent before other queues have their turn, in times as many as are taken from the ring together.
const BURST: usize = 256 / PUBLISHED_TOGETHER;

/// Bytes of the shortest and the longest frame sent, with their headers.
const SHORTEST: u64 = (HEADER + ETHERNET_HEADER) as u64;
const LONGEST: u64 = (HEADER + MAX_FRAME) as u64;

/// A transmit queue (§5.1.6.2): hands the driver's buffers to the host as they are.
pub(super) struct Transmit<B: NetBackend> {
    pub(super) shared: Arc<Shared<B>>,
    pub(super) port: Arc<B::Port>,
}

impl<B: NetBackend> Transmit<B> {
    fn burst<M: DmaView>(
        &self,
        queue: &mut Queue<M>,
        memory: &M::M,
        counted: &mut NetStatistics,
    ) -> Result<Wait, vring::Error> {
        let mut sender = self.port.sender();
        let mut chains = Vec::with_capacity(PUBLISHED_TOGETHER);
        for _ in 0..BURST {
            // First all descriptors, then all frames: the processor waits for many of them at a time then.
            let mut end = Ok(None);
            while chains.len() < PUBLISHED_TOGETHER {
                match queue.pop(&memory) {
                    Ok(Some(chain)) => chains.push(chain),
                    Ok(None) => {
                        end = Ok(Some(Wait::Buffers));
                        break;
                    }
                    Err(error) => {
                        end = Err(error);
                        break;
                    }
                }
            }
            for chain in &chains {
                let sendable = (SHORTEST..=LONGEST).contains(&chain.readable_len());
                // A frame that the host does not take is lost, as on any network.
                if sendable && sender.send(chain.readable()).is_ok() {
                    counted.transmitted += 1;
                } else {
                    counted.transmit_dropped += 1;
                }
            }
            let end = end?;
            for chain in chains.drain(..) {
                queue.stage(chain, 0)?;
            }
            queue.publish()?;
            if let Some(wait) = end {
                return Ok(wait);
            }
        }
        Ok(Wait::Turn)
    }
}

impl<M: DmaView, B: NetBackend> Service<M> for Transmit<B> {
    const POLLS: u32 = super::POLLS;

    fn serve(
        &mut self,
        queue: &mut Queue<M>,
        memory: &M::M,
        _: bool,
    ) -> Result<Wait, vring::Error> {
        let mut counted = NetStatistics::default();
        let wait = self.burst(queue, memory, &mut counted);
        self.shared.counters.add(&counted);
        queue.publish()?;
        wait
    }
}
