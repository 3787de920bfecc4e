use std::io::ErrorKind;
use std::os::fd::RawFd;
use std::sync::{Arc, PoisonError};

use event_manager::EventSet;
use vring::Queue;

use super::device::Shared;
use super::spec::CONTROL_RECEIVE;
use crate::dma::DmaView;
use crate::serve::{Service, Wait};

/// Bytes read from the host at once.
const CHUNK: usize = 4096;

/// A port's receive queue (§5.3.6): the host's characters on their way to the driver.
///
/// They are read only when there is a buffer for them, so that none are lost.
pub(super) struct Input {
    shared: Arc<Shared>,
    port: usize,
    multiport: bool,
    bytes: Box<[u8]>,
}

impl Input {
    pub(super) fn new(shared: Arc<Shared>, port: usize, multiport: bool) -> Self {
        Self {
            shared,
            port,
            multiport,
            bytes: vec![0; CHUNK].into(),
        }
    }
}

impl<M: DmaView> Service<M> for Input {
    fn source(&self) -> Option<(RawFd, EventSet)> {
        let input = self
            .shared
            .ports
            .get(self.port)?
            .input
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        input
            .as_ref()
            .map(|input| (input.as_raw_fd(), EventSet::IN))
    }

    fn serve(
        &mut self,
        queue: &mut Queue<M>,
        memory: &M::M,
        ready: bool,
    ) -> Result<Wait, vring::Error> {
        let Some(port) = self.shared.ports.get(self.port) else {
            return Ok(Wait::Nudge);
        };
        // Linux drops what arrives before somebody has opened the port.
        let open = {
            let link = port.link();
            link.input && (link.state.open || !self.multiport)
        };
        let mut input = port.input.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(input) = input.as_mut().filter(|_| open) else {
            return Ok(Wait::Nudge);
        };
        // A single read after the descriptor was readable does not block, whatever it is.
        if !ready {
            return Ok(Wait::Source);
        }
        let Some(chain) = queue.pop(&memory)? else {
            return Ok(Wait::Buffers);
        };
        let room = usize::try_from(chain.writable_len())
            .unwrap_or(CHUNK)
            .min(CHUNK);
        if room == 0 {
            queue.push(chain, 0)?;
            return Ok(Wait::Source);
        }
        match input.read(self.bytes.get_mut(..room).unwrap_or_default()) {
            Ok(length @ 1..) => {
                let mut writer = chain.writer();
                writer.write(self.bytes.get(..length).unwrap_or_default());
                let written = writer.written();
                queue.push(chain, written)?;
                Ok(Wait::Source)
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                queue.put_back(chain)?;
                Ok(Wait::Source)
            }
            Ok(_) | Err(_) => {
                queue.put_back(chain)?;
                if port.input_closed() {
                    self.shared.queues.nudge(CONTROL_RECEIVE);
                }
                Ok(Wait::Nudge)
            }
        }
    }
}
