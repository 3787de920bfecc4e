//! Event descriptors that came over the socket.

use std::fs::{File, read_link};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};

use vmm_sys_util::eventfd::EventFd;

/// Takes `file` for an event descriptor, if it is one: reading or writing anything else might block, or do something.
pub(super) fn event(file: File) -> io::Result<EventFd> {
    let link = read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    if link.as_os_str() != "anon_inode:[eventfd]" {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{} is not an eventfd", link.display()),
        ));
    }
    // SAFETY: the descriptor is open, and nothing else owns it: `into_raw_fd` has given it up.
    Ok(unsafe { EventFd::from_raw_fd(file.into_raw_fd()) })
}
