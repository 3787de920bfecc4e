use std::sync::Arc;

use vring::Queue;

use super::backend::NetBackend;
use super::command::{Command, MAX_COMMAND};
use super::shared::Shared;
use super::spec::{ACK_ERR, ACK_OK, Features};
use crate::dma::DmaView;
use crate::serve::{Service, Wait};

/// Commands carried out before other queues have their turn.
const BURST: usize = 32;

/// The control queue (§5.1.6.5).
pub(super) struct Control<B: NetBackend> {
    shared: Arc<Shared<B>>,
    features: Features,
    command: Box<[u8]>,
}

impl<B: NetBackend> Control<B> {
    pub(super) fn new(shared: Arc<Shared<B>>, features: Features) -> Self {
        // One byte more than is looked at, to tell commands that are longer.
        Self {
            shared,
            features,
            command: vec![0; MAX_COMMAND + 1].into(),
        }
    }

    /// Carries out a command and returns what to acknowledge it with.
    fn execute(&self, length: usize) -> u8 {
        let command = self
            .command
            .get(..length)
            .filter(|command| command.len() <= MAX_COMMAND);
        let done = command.is_some_and(|command| {
            Command::parse(command, self.features).is_ok_and(|command| self.shared.execute(command))
        });
        if done { ACK_OK } else { ACK_ERR }
    }
}

impl<M: DmaView, B: NetBackend> Service<M> for Control<B> {
    fn serve(
        &mut self,
        queue: &mut Queue<M>,
        memory: &M::M,
        _: bool,
    ) -> Result<Wait, vring::Error> {
        for _ in 0..BURST {
            let Some(chain) = queue.pop(&memory)? else {
                return Ok(Wait::Buffers);
            };
            let length = chain.reader().read(&mut self.command);
            // A command whose outcome cannot be told is not carried out.
            let written = if chain.writable_len() > 0 {
                let mut writer = chain.writer();
                writer.write(&[self.execute(length)]);
                writer.written()
            } else {
                0
            };
            queue.push(chain, written)?;
        }
        Ok(Wait::Turn)
    }
}
