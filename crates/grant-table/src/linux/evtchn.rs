//! `/dev/xen/evtchn`: event channels.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use zerocopy::IntoBytes as _;

use super::{LinuxError, open, sys};
use crate::spec::DomId;
use crate::spec::event::Port;
use crate::spec::linux::{BindInterdomain, BindUnbound, BindVirq, Notify, Restrict, Unbind};

/// Events that are read at once.
const BATCH: usize = 64;

/// Event channels of this program, which are closed with the device. Its file can be read when events are pending.
#[derive(Debug)]
pub struct EventDevice {
    file: File,
}

impl AsFd for EventDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl EventDevice {
    /// Opens the device.
    ///
    /// # Errors
    ///
    /// [`LinuxError::Open`].
    pub fn open() -> Result<Self, LinuxError> {
        let mut options = OpenOptions::new();
        options.custom_flags(libc::O_NONBLOCK);
        open(&mut options, Path::new("/dev/xen/evtchn")).map(|file| Self { file })
    }

    /// Makes a port to which `remote` may connect.
    ///
    /// # Errors
    ///
    /// [`LinuxError::Bind`].
    pub fn bind_unbound(&self, remote: DomId) -> Result<Port, LinuxError> {
        let argument = BindUnbound {
            remote: remote.0.into(),
        };
        bound(sys::call(&self.file, argument), || format!("{remote}"))
    }

    /// Makes a port that is connected to one of `remote`'s, which must accept this domain. An event of the new port's is pending at once.
    ///
    /// # Errors
    ///
    /// [`LinuxError::Bind`].
    pub fn bind_interdomain(&self, remote: DomId, remote_port: Port) -> Result<Port, LinuxError> {
        let argument = BindInterdomain {
            remote: remote.0.into(),
            remote_port,
        };
        bound(sys::call(&self.file, argument), || {
            format!("{remote_port:?} of {remote}")
        })
    }

    /// Makes a port for a virtual interrupt of this domain, which no other program may have bound.
    ///
    /// # Errors
    ///
    /// [`LinuxError::Bind`].
    pub fn bind_virq(&self, virq: u32) -> Result<Port, LinuxError> {
        bound(sys::call(&self.file, BindVirq { virq }), || {
            format!("virtual interrupt {virq}")
        })
    }

    /// Closes a port.
    ///
    /// # Errors
    ///
    /// [`LinuxError::Port`].
    pub fn unbind(&self, port: Port) -> Result<(), LinuxError> {
        used("unbind", port, sys::call(&self.file, Unbind { port }))
    }

    /// Notifies the other end.
    ///
    /// # Errors
    ///
    /// [`LinuxError::Port`].
    pub fn notify(&self, port: Port) -> Result<(), LinuxError> {
        used("notify from", port, sys::call(&self.file, Notify { port }))
    }

    /// Takes pending events, at most 64. Their ports are masked.
    ///
    /// # Errors
    ///
    /// [`LinuxError::Events`].
    pub fn take(&self) -> Result<Vec<Port>, LinuxError> {
        let mut ports = vec![Port::default(); BATCH];
        let count = match (&self.file).read(ports.as_mut_bytes()) {
            Ok(bytes) => bytes / size_of::<Port>(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(source) => {
                let what = "take";
                return Err(LinuxError::Events { what, source });
            }
        };
        ports.truncate(count);
        Ok(ports)
    }

    /// Waits until events are pending or the time is over; whether there are.
    ///
    /// # Errors
    ///
    /// [`LinuxError::Events`].
    pub fn wait(&self, time: Duration) -> Result<bool, LinuxError> {
        let what = "wait for";
        sys::wait(self.as_fd(), time).map_err(|source| LinuxError::Events { what, source })
    }

    /// Lets the ports have events again.
    ///
    /// # Errors
    ///
    /// [`LinuxError::Events`].
    pub fn unmask(&self, ports: &[Port]) -> Result<(), LinuxError> {
        let what = "unmask";
        (&self.file)
            .write_all(ports.as_bytes())
            .map_err(|source| LinuxError::Events { what, source })
    }

    /// Forgets all events that were not taken.
    ///
    /// # Errors
    ///
    /// [`LinuxError::Events`].
    pub fn reset(&self) -> Result<(), LinuxError> {
        let what = "reset";
        let result = sys::reset(&self.file).map(drop);
        result.map_err(|source| LinuxError::Events { what, source })
    }

    /// Allows, from now on and for good, connections with `domain` only.
    ///
    /// # Errors
    ///
    /// [`LinuxError::Bind`]: the device is restricted already, or this is no other domain.
    pub fn restrict(&self, domain: DomId) -> Result<(), LinuxError> {
        let result = sys::call(&self.file, Restrict { domain: domain.0 });
        bound(result, || format!("{domain} only")).map(drop)
    }
}

fn bound(result: io::Result<u32>, to: impl FnOnce() -> String) -> Result<Port, LinuxError> {
    result
        .map(Port)
        .map_err(|source| LinuxError::Bind { to: to(), source })
}

fn used(what: &'static str, port: Port, result: io::Result<u32>) -> Result<(), LinuxError> {
    result
        .map(drop)
        .map_err(|source| LinuxError::Port { what, port, source })
}
