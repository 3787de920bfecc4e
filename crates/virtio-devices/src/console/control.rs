//! The control queues (§5.3.6.2).

use std::sync::Arc;

use vring::Queue;
use zerocopy::{FromBytes, IntoBytes};

use super::device::Shared;
use super::port::{Notices, SharedPort};
use super::spec::{CONTROL_RECEIVE, Control, Resize, event, receive_queue};
use crate::dma::DmaView;
use crate::serve::{Service, Wait};

/// Messages handled before other queues have their turn.
const BURST: usize = 64;

/// The control receive queue: tells the driver what it does not know yet about the ports.
///
/// What that is takes a few bits a port, however often the driver asks and however few buffers it offers.
pub(super) struct Announce {
    pub(super) shared: Arc<Shared>,
}

impl Announce {
    /// A port with something to tell.
    fn next(&self) -> Option<(u32, &SharedPort)> {
        (0..)
            .zip(&self.shared.ports)
            .find(|(_, port)| !port.link().state.notices.is_empty())
    }

    /// The first message about a port. It counts as told.
    fn take(&self, id: u32, port: &SharedPort) -> Vec<u8> {
        let mut link = port.link();
        let notice = link.state.notices.iter().next().unwrap_or_default();
        link.state.notices -= notice;
        let (event, value, rest) = match notice {
            Notices::ADD => (event::DEVICE_ADD, 0, Vec::new()),
            Notices::CONSOLE => (event::CONSOLE_PORT, 1, Vec::new()),
            Notices::NAME => (event::PORT_NAME, 0, port.name.clone().into_bytes()),
            Notices::RESIZE => {
                let (cols, rows) = self.shared.size();
                (
                    event::RESIZE,
                    0,
                    Resize {
                        cols: cols.into(),
                        rows: rows.into(),
                    }
                    .as_bytes()
                    .to_vec(),
                )
            }
            _ => (event::PORT_OPEN, u16::from(link.host_open()), Vec::new()),
        };
        let control = Control {
            id: id.into(),
            event: event.into(),
            value: value.into(),
        };
        [control.as_bytes(), &rest].concat()
    }
}

impl<M: DmaView> Service<M> for Announce {
    fn serve(
        &mut self,
        queue: &mut Queue<M>,
        memory: &M::M,
        _: bool,
    ) -> Result<Wait, vring::Error> {
        for _ in 0..BURST {
            let Some((id, port)) = self.next() else {
                return Ok(Wait::Nudge);
            };
            let Some(chain) = queue.pop(&memory)? else {
                return Ok(Wait::Buffers);
            };
            let mut writer = chain.writer();
            // A message that does not fit is lost: the driver offered a buffer that is too small.
            let _ = writer.write_all(&self.take(id, port));
            let written = writer.written();
            queue.push(chain, written)?;
        }
        Ok(Wait::Turn)
    }
}

/// The control transmit queue: what the driver tells about the ports.
pub(super) struct Listen {
    pub(super) shared: Arc<Shared>,
}

impl Listen {
    fn handle(&self, control: Control) {
        let on = control.value.get() == 1;
        let id = u16::try_from(control.id.get()).ok();
        let port = id.and_then(|id| Some((id, self.shared.ports.get(usize::from(id))?)));
        match (control.event.get(), port) {
            (event::DEVICE_READY, _) if on => {
                for port in &self.shared.ports {
                    let state = &mut port.link().state;
                    if !state.added {
                        state.added = true;
                        state.notices |= Notices::ADD;
                    }
                }
                self.shared.queues.nudge(CONTROL_RECEIVE);
            }
            (event::PORT_READY, Some((_, port))) if on => {
                let state = &mut port.link().state;
                if state.added {
                    state.ready = true;
                    state.notices |= Notices::OPEN;
                    state.notices.set(Notices::NAME, !port.name.is_empty());
                    if port.console {
                        state.notices |= Notices::CONSOLE;
                        state
                            .notices
                            .set(Notices::RESIZE, self.shared.size() != (0, 0));
                    }
                    self.shared.queues.nudge(CONTROL_RECEIVE);
                }
            }
            (event::PORT_OPEN, Some((id, port))) => {
                port.link().state.open = on;
                self.shared.queues.nudge(receive_queue(id));
            }
            _ => {}
        }
    }
}

impl<M: DmaView> Service<M> for Listen {
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
            let mut bytes = [0; size_of::<Control>()];
            if chain.reader().read_exact(&mut bytes).is_ok()
                && let Ok(control) = Control::read_from_bytes(&bytes)
            {
                self.handle(control);
            }
            queue.push(chain, 0)?;
        }
        Ok(Wait::Turn)
    }
}
