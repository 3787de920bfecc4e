use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::thread::{self, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How often a model looks at its device, in milliseconds.
const TICK: i32 = 10;
/// Names what ends the thread; vectors have their numbers.
const END: u64 = u64::MAX;

/// What the model is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// The device interrupts.
    Interrupt,
    /// Time passed.
    Tick,
}

/// A thread between a device and whoever it interrupts: the model is told first. It ends with this.
pub(super) struct Relay {
    end: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Lets `connect` have an eventfd for each of `targets`, and passes on what they signal after `tell`, which is also told of time
    /// if `ticks`.
    pub fn start(
        targets: &[&EventFd],
        ticks: bool,
        tell: impl Fn(Event) + Send + 'static,
        connect: impl FnOnce(&[&EventFd]) -> io::Result<()>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let watch = |source: &EventFd, data| {
            let event = EpollEvent::new(EventSet::IN, data);
            epoll.ctl(ControlOperation::Add, source.as_raw_fd(), event)
        };
        let end = EventFd::new(EFD_NONBLOCK)?;
        watch(&end, END)?;
        let mut vectors = Vec::new();
        for (target, number) in targets.iter().zip(0..) {
            let source = EventFd::new(EFD_NONBLOCK)?;
            watch(&source, number)?;
            vectors.push((source, target.try_clone()?));
        }
        let sources: Vec<_> = vectors.iter().map(|(source, _)| source).collect();
        connect(&sources)?;
        let timeout = if ticks { TICK } else { -1 };
        let thread = thread::Builder::new()
            .name("vpio".to_owned())
            .spawn(move || relay(&epoll, timeout, &vectors, tell))?;
        Ok(Self {
            end,
            thread: Some(thread),
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // A counter that is full is readable too; a thread that panicked has ended.
        let _full = self.end.write(1);
        let _panicked = self.thread.take().map(JoinHandle::join);
    }
}

fn relay(epoll: &Epoll, timeout: i32, vectors: &[(EventFd, EventFd)], tell: impl Fn(Event)) {
    let mut events = [EpollEvent::default(); 16];
    loop {
        let count = match epoll.wait(timeout, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        if count == 0 {
            tell(Event::Tick);
        }
        for event in events.iter().take(count) {
            if event.data() == END {
                return;
            }
            let number = usize::try_from(event.data()).unwrap_or(usize::MAX);
            let Some((source, target)) = vectors.get(number) else {
                continue;
            };
            // Nobody else reads it, and nobody but a full counter refuses.
            let _read = source.read();
            tell(Event::Interrupt);
            let _full = target.write(1);
        }
    }
}
