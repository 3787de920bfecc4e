use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

/// Where a port's characters come from: a terminal, a pipe, a socket, a file. It is read when its descriptor is readable, so it may
/// block; its end closes the port's input.
pub trait ConsoleInput: Read + AsRawFd + Send {}

impl<T: Read + AsRawFd + Send> ConsoleInput for T {}

/// Where a port's characters go. One that does not block holds the driver back while it is full; one that blocks stalls the
/// worker instead. One that fails is closed.
pub trait ConsoleOutput: Write + AsRawFd + Send {}

impl<T: Write + AsRawFd + Send> ConsoleOutput for T {}

/// A port of a console device, before the device takes it.
#[derive(Default)]
pub struct Port {
    pub(super) name: String,
    pub(super) console: bool,
    pub(super) input: Option<Box<dyn ConsoleInput>>,
    pub(super) output: Option<Box<dyn ConsoleOutput>>,
}

impl Port {
    /// A port for a text console, such as Linux's `hvc0`.
    pub fn console() -> Self {
        Self {
            console: true,
            ..Self::default()
        }
    }

    /// A port for data, which the guest finds by its name.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            ..Self::default()
        }
    }

    /// Sets where characters come from.
    pub fn input(mut self, input: impl ConsoleInput + 'static) -> Self {
        self.input = Some(Box::new(input));
        self
    }

    /// Sets where characters go.
    pub fn output(mut self, output: impl ConsoleOutput + 'static) -> Self {
        self.output = Some(Box::new(output));
        self
    }

    /// Connects the port to a socket in this process, whose other end is returned.
    ///
    /// # Errors
    /// The operating system refuses the sockets.
    pub fn connected(self) -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        // A descriptor of its own for each direction: they are watched apart.
        let output = ours.try_clone()?;
        Ok((self.input(ours).output(output), theirs))
    }
}

bitflags! {
    /// What the driver has not been told yet about a port.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub struct Notices: u8 {
        /// That it exists.
        const ADD = 1 << 0;
        /// That it is a console.
        const CONSOLE = 1 << 1;
        /// Its name.
        const NAME = 1 << 2;
        /// Its size.
        const RESIZE = 1 << 3;
        /// Whether the host has it open.
        const OPEN = 1 << 4;
    }
}

/// What driver and device have agreed on about a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortState {
    /// The driver was told that it exists, or is about to be.
    pub added: bool,
    /// The driver said it is ready.
    pub ready: bool,
    /// The driver has it open.
    pub open: bool,
    /// What the driver has not been told yet.
    pub notices: Notices,
    /// Bytes of the next transmitted buffer that the host has taken.
    pub sent: u64,
}

/// A port that the queues of a device share.
pub(super) struct SharedPort {
    pub(super) name: String,
    pub(super) console: bool,
    pub(super) input: Mutex<Option<Box<dyn ConsoleInput>>>,
    pub(super) output: Mutex<Option<Box<dyn ConsoleOutput>>>,
    link: Mutex<Link>,
}

/// What changes of a port. Its lock is the last one taken.
pub(super) struct Link {
    pub(super) state: PortState,
    /// The host's directions that are open. One that closes is not dropped: its descriptor may be watched.
    pub(super) input: bool,
    pub(super) output: bool,
}

impl Link {
    pub(super) fn host_open(&self) -> bool {
        self.input || self.output
    }
}

impl SharedPort {
    pub(super) fn new(port: Port) -> Self {
        let Port {
            name,
            console,
            input,
            output,
        } = port;
        let link = Link {
            state: PortState::default(),
            input: input.is_some(),
            output: output.is_some(),
        };
        Self {
            name,
            console,
            input: Mutex::new(input),
            output: Mutex::new(output),
            link: Mutex::new(link),
        }
    }

    pub(super) fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host closed its input. Returns whether the driver has to be told.
    pub(super) fn input_closed(&self) -> bool {
        self.closed(|link| link.input = false)
    }

    /// The host closed its output. Returns whether the driver has to be told.
    pub(super) fn output_closed(&self) -> bool {
        self.closed(|link| link.output = false)
    }

    fn closed(&self, close: impl FnOnce(&mut Link)) -> bool {
        let mut link = self.link();
        let before = link.host_open();
        close(&mut link);
        let told = link.state.ready && before && !link.host_open();
        if told {
            link.state.notices |= Notices::OPEN;
        }
        told
    }
}
