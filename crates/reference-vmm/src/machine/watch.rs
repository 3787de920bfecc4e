//! What is done when somebody else signals.

use std::io;
use std::thread::{self, JoinHandle};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::stop::wait_readable;

/// What is done when an eventfd, which does not block, was signalled.
pub(crate) type Action = (EventFd, Box<dyn Fn() + Send>);

/// A thread that carries out actions. Ends when dropped.
pub(crate) struct Watch {
    end: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub(crate) fn spawn(name: &str, actions: Vec<Action>) -> io::Result<Self> {
        let end = EventFd::new(EFD_NONBLOCK)?;
        let ends = end.try_clone()?;
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let events = actions.iter().map(|(event, _)| event);
                let events: Vec<_> = events.chain([&ends]).collect();
                while wait_readable(&events).is_ok() && ends.read().is_err() {
                    for (event, act) in &actions {
                        if event.read().is_ok() {
                            act();
                        }
                    }
                }
            })?;
        Ok(Self {
            end,
            thread: Some(thread),
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.end.write(1).is_ok()
            && let Some(thread) = self.thread.take()
        {
            // A thread that panicked does nothing more either.
            let _ = thread.join();
        }
    }
}
