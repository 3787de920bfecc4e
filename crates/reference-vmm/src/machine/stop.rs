//! Why and how a machine stops.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Why a machine stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The guest turned the power off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest wrote this to the debug-exit port.
    Exit(u32),
    /// The guest cannot go on.
    Crash(Crash),
    /// This process was asked to end, by the signal with this number.
    Signal(i32),
    /// The user ended it from the terminal.
    User,
    /// A vCPU could not be run by the host.
    Host(String),
    /// The guest cannot go on with a device of the host that it drives.
    Device(String),
}

/// Where a guest crashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// The vCPU.
    pub vcpu: u8,
    /// Its instruction pointer, if the host still knows it.
    pub rip: Option<u64>,
    /// The exit from the guest that told.
    pub exit: String,
    /// What it means.
    pub cause: CrashCause,
}

/// What a crash means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashCause {
    /// The processor shut down: three exceptions inside one another, or the like.
    TripleFault,
    /// The operating system reported a panic through the pvpanic device.
    Panic,
    /// The host could not enter the guest, or could not emulate an instruction.
    Unrunnable,
}

impl fmt::Display for CrashCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TripleFault => "triple fault",
            Self::Panic => "guest panic",
            Self::Unrunnable => "the host cannot run the guest",
        })
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on vCPU {}", self.cause, self.vcpu)?;
        match self.rip {
            Some(rip) => write!(f, " at RIP {rip:#018x}")?,
            None => write!(f, " at an unknown RIP")?,
        }
        write!(f, " (exit: {})", self.exit)
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::Exit(value) => write!(f, "the guest ended with the value {value:#x}"),
            Self::Crash(crash) => crash.fmt(f),
            Self::Signal(signal) => write!(f, "ended by signal {signal}"),
            Self::User => f.write_str("ended from the terminal"),
            Self::Host(error) => write!(f, "the host cannot run the guest: {error}"),
            Self::Device(what) => write!(f, "an assigned function: {what}"),
        }
    }
}

/// Stops a machine, once. Shared by everything that may want to.
///
/// Threads that wait for something wait for its event too.
#[derive(Debug)]
pub struct StopSwitch {
    reason: OnceLock<Stop>,
    event: EventFd,
}

impl StopSwitch {
    /// A switch that is not thrown.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            reason: OnceLock::new(),
            event: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Throws the switch. The first reason stands.
    pub fn throw(&self, reason: Stop) {
        if self.reason.set(reason).is_ok() {
            // An eventfd that nobody drains can only fail to count beyond 2^64 - 2.
            let _ = self.event.write(1);
        }
    }

    /// Why the machine stops, if it does.
    pub fn reason(&self) -> Option<&Stop> {
        self.reason.get()
    }

    /// Readable once the switch is thrown.
    pub fn event(&self) -> &EventFd {
        &self.event
    }
}

/// Waits until one of `events` is readable; a signal does not end the wait.
pub(crate) fn wait_readable(events: &[&EventFd]) -> io::Result<()> {
    let epoll = Epoll::new()?;
    for event in events {
        epoll.ctl(
            ControlOperation::Add,
            event.as_raw_fd(),
            EpollEvent::new(EventSet::IN, 0),
        )?;
    }
    loop {
        match epoll.wait(-1, &mut [EpollEvent::default()]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(|_| ()),
        }
    }
}
