//! What the main thread does while the guest runs: it waits for the end, a signal, and what the user types.

use std::io::{self, IsTerminal, PipeWriter, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::terminal::Escape;
use crate::devices::serial::SerialPort;
use crate::machine::stop::{Stop, StopSwitch};

/// Where what is typed goes. Beyond what it takes at once, typing is lost, as on a real line.
pub(super) enum Keyboard {
    /// To the serial port.
    Serial(Arc<SerialPort>),
    /// To a pipe, that does not block, into the virtio console.
    Console(PipeWriter),
}

impl Keyboard {
    fn press(&mut self, keys: &[u8]) {
        match self {
            Self::Serial(port) => {
                port.input(keys);
            }
            Self::Console(pipe) => {
                let _ = pipe.write(keys);
            }
        }
    }
}

/// Waits for signals and input, for one machine after the other.
pub(super) struct Watch {
    epoll: Epoll,
    signals: Vec<(i32, UnixStream)>,
    /// What is typed at a terminal may be a command; a pipe's bytes are all for the guest.
    escape: Option<Escape>,
}

/// Tags of the descriptors; signals are tagged with their number.
const STOP: u64 = 1000;
const INPUT: u64 = 1001;

impl Watch {
    pub(super) fn new() -> io::Result<Self> {
        let watch = Self {
            epoll: Epoll::new()?,
            signals: Vec::new(),
            escape: io::stdin().is_terminal().then(Escape::default),
        };
        let mut signals = Vec::new();
        for signal in [SIGHUP, SIGINT, SIGTERM] {
            let (reader, writer) = UnixStream::pair()?;
            signal_hook::low_level::pipe::register(signal, writer)?;
            watch.add(&reader, u64::try_from(signal).unwrap_or_default())?;
            signals.push((signal, reader));
        }
        // A file cannot be polled: then there is no input.
        let _ = watch.add(&io::stdin(), INPUT);
        Ok(Self { signals, ..watch })
    }

    fn add(&self, file: &impl AsRawFd, tag: u64) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, tag);
        self.epoll
            .ctl(ControlOperation::Add, file.as_raw_fd(), event)
    }

    fn remove(&self, file: &impl AsRawFd) -> io::Result<()> {
        let event = EpollEvent::default();
        self.epoll
            .ctl(ControlOperation::Delete, file.as_raw_fd(), event)
    }

    /// Returns when `stop` is thrown, by the guest, a signal or the user. Signals are never consumed: one that comes between two
    /// machines stops the next.
    pub(super) fn until_stopped(
        &mut self,
        stop: &StopSwitch,
        keyboard: &mut Keyboard,
    ) -> io::Result<()> {
        self.add(stop.event(), STOP)?;
        let mut events = [EpollEvent::default(); 4];
        while stop.reason().is_none() {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for event in events.iter().take(count) {
                match event.data() {
                    STOP => {}
                    INPUT => self.input(stop, keyboard)?,
                    tag => {
                        let signal = self
                            .signals
                            .iter()
                            .find(|(s, _)| u64::try_from(*s) == Ok(tag));
                        if let Some((signal, _)) = signal {
                            stop.throw(Stop::Signal(*signal));
                        }
                    }
                }
            }
        }
        self.remove(stop.event())
    }

    fn input(&mut self, stop: &StopSwitch, keyboard: &mut Keyboard) -> io::Result<()> {
        let mut buffer = [0; 256];
        // Not through the standard library's buffer: what that holds back, epoll does not see.
        let stdin = rustix::stdio::stdin();
        let count = match rustix::io::read(stdin, &mut buffer) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if count == 0 {
            // The end of the input is not the end of the machine.
            return self.remove(&stdin);
        }
        let bytes = buffer.get(..count).unwrap_or_default();
        let mut typed = Vec::new();
        let quit = match &mut self.escape {
            Some(escape) => escape.filter(bytes, &mut typed),
            None => {
                typed.extend(bytes);
                false
            }
        };
        if quit {
            stop.throw(Stop::User);
        }
        keyboard.press(&typed);
        Ok(())
    }
}
