use std::io::ErrorKind;
use std::os::fd::RawFd;
use std::sync::{Arc, PoisonError};

use event_manager::EventSet;
use vring::Queue;

use super::device::Shared;
use super::port::ConsoleOutput;
use super::spec::CONTROL_RECEIVE;
use crate::dma::DmaView;
use crate::serve::{Service, Wait};

/// Bytes written to the host at once. A pipe that is writable takes as many without blocking.
const CHUNK: usize = 4096;

/// Chunks written before other queues have their turn.
const BURST: usize = 64;

/// A port's transmit queue (§5.3.6): the driver's characters on their way to the host.
///
/// While the host does not take any, they stay in the driver's buffer and the buffer is not used.
pub(super) struct Output {
    shared: Arc<Shared>,
    port: usize,
    bytes: Box<[u8]>,
}

/// How a chunk fared.
enum Sent {
    Bytes(u64),
    Blocked,
    Failed,
}

impl Output {
    pub(super) fn new(shared: Arc<Shared>, port: usize) -> Self {
        Self {
            shared,
            port,
            bytes: vec![0; CHUNK].into(),
        }
    }
}

fn send(output: &mut dyn ConsoleOutput, bytes: &[u8]) -> Sent {
    match output.write(bytes) {
        Ok(0) => Sent::Failed,
        Ok(length) => Sent::Bytes(length as u64),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Sent::Blocked,
        Err(error) if error.kind() == ErrorKind::Interrupted => Sent::Bytes(0),
        Err(_) => Sent::Failed,
    }
}

impl<M: DmaView> Service<M> for Output {
    fn source(&self) -> Option<(RawFd, EventSet)> {
        let output = self
            .shared
            .ports
            .get(self.port)?
            .output
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        output
            .as_ref()
            .map(|output| (output.as_raw_fd(), EventSet::OUT))
    }

    fn serve(
        &mut self,
        queue: &mut Queue<M>,
        memory: &M::M,
        _: bool,
    ) -> Result<Wait, vring::Error> {
        let Some(port) = self.shared.ports.get(self.port) else {
            return Ok(Wait::Nudge);
        };
        let mut output = port.output.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..BURST {
            let Some(chain) = queue.pop(&memory)? else {
                return Ok(Wait::Buffers);
            };
            let mut reader = chain.reader();
            let (done, open) = {
                let link = port.link();
                (link.state.sent, link.output)
            };
            // The driver may have shortened the buffer meanwhile.
            let rest = reader.remaining().saturating_sub(done);
            let skip = usize::try_from(done).unwrap_or(usize::MAX);
            let length = if reader.advance(skip).is_ok() {
                reader.read(&mut self.bytes)
            } else {
                0
            };
            let sent = match (output.as_mut().filter(|_| open), self.bytes.get(..length)) {
                (Some(output), Some(bytes @ [_, ..])) => send(&mut **output, bytes),
                // Nobody listens, or nothing is left.
                _ => Sent::Bytes(rest),
            };
            match sent {
                Sent::Bytes(length) if length < rest => {
                    port.link().state.sent = done.saturating_add(length);
                    queue.put_back(chain)?;
                }
                Sent::Bytes(_) => {
                    port.link().state.sent = 0;
                    queue.push(chain, 0)?;
                }
                Sent::Blocked => {
                    queue.put_back(chain)?;
                    return Ok(Wait::Source);
                }
                Sent::Failed => {
                    queue.put_back(chain)?;
                    if port.output_closed() {
                        self.shared.queues.nudge(CONTROL_RECEIVE);
                    }
                }
            }
        }
        Ok(Wait::Turn)
    }
}
