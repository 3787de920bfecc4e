use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How often a model looks at its device.
const TICK: Duration = Duration::from_millis(10);
/// Names what ends the thread; vectors have their numbers.
const END: u64 = u64::MAX;

/// What is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// The source with this number was signalled.
    Interrupt(usize),
    /// Time passed.
    Tick,
}

/// A thread that waits for a device's interrupts, and for time to pass. It ends with this.
pub(crate) struct Relay {
    end: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Calls `tell` whenever one of `sources`, which do not block, is signalled, and every 10 ms if `ticks`, however often that is.
    pub fn start(
        sources: Vec<EventFd>,
        ticks: bool,
        tell: impl Fn(Event) + Send + 'static,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let watch = |source: &EventFd, data| {
            let event = EpollEvent::new(EventSet::IN, data);
            epoll.ctl(ControlOperation::Add, source.as_raw_fd(), event)
        };
        let end = EventFd::new(EFD_NONBLOCK)?;
        watch(&end, END)?;
        for (source, number) in sources.iter().zip(0..) {
            watch(source, number)?;
        }
        let thread = thread::Builder::new()
            .name("vpio".to_owned())
            .spawn(move || relay(&epoll, ticks, &sources, tell))?;
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

fn relay(epoll: &Epoll, ticks: bool, sources: &[EventFd], tell: impl Fn(Event)) {
    let mut events = [EpollEvent::default(); 16];
    let mut next = Instant::now() + TICK;
    loop {
        let timeout = if ticks {
            let left = next.saturating_duration_since(Instant::now());
            // Not before: a part of a millisecond is waited for as a whole one.
            i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(0)
        } else {
            -1
        };
        let count = match epoll.wait(timeout, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        for event in events.iter().take(count) {
            if event.data() == END {
                return;
            }
            let number = usize::try_from(event.data()).unwrap_or(usize::MAX);
            let Some(source) = sources.get(number) else {
                continue;
            };
            // Nobody else reads it.
            let _read = source.read();
            tell(Event::Interrupt(number));
        }
        if ticks && Instant::now() >= next {
            tell(Event::Tick);
            next = Instant::now() + TICK;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A device that always has something to say does not keep its model from looking at the clock.
    #[test]
    fn time_passes_while_a_device_interrupts() {
        let source = EventFd::new(EFD_NONBLOCK).unwrap();
        let device = source.try_clone().unwrap();
        let (told, events) = mpsc::channel();
        let tell = move |event| {
            if event != Event::Tick {
                device.write(1).unwrap();
            }
            told.send(event).unwrap();
        };
        source.write(1).unwrap();
        let relay = Relay::start(vec![source], true, tell).unwrap();
        let bound = 1_000_000;
        assert!(events.iter().take(bound).any(|event| event == Event::Tick));
        // What is told now has somebody to listen.
        drop(relay);
    }
}
