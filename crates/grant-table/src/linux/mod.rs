//! The same on Linux, as the kernel lets programs of a Xen domain do it: `/dev/xen/gntalloc` grants pages, `/dev/xen/gntdev` maps and
//! copies what others grant, `/dev/xen/evtchn` has event channels.
//!
//! Pages that are shared or mapped are guards: they are unmapped, and the grant is given back, when the last [`Frame`] of theirs is gone.
//!
//! [`Frame`]: crate::frame::Frame

mod error;
mod evtchn;
mod gntalloc;
mod gntdev;
mod store;
mod sys;

pub use error::LinuxError;
pub use evtchn::EventDevice;
pub use gntalloc::{GrantAllocator, SharedPages};
pub use gntdev::{Copied, GrantCopy, GrantDevice, GrantPart, MappedPages};
pub use store::KernelStore;

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use crate::spec::PAGE_SIZE;
use crate::spec::event::Port;
use crate::spec::linux::{NotifyFlags, UnmapNotify};

/// What the kernel does when a page is unmapped, also because the program has crashed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnUnmap {
    /// Clears the byte here in the page.
    pub clear: Option<u16>,
    /// Notifies from this port, which this program has bound.
    pub notify: Option<Port>,
}

impl OnUnmap {
    /// The request for page `page` of those at `index` in the device's file; none if the byte is not in the page.
    fn request(self, index: u64, page: u32) -> Option<UnmapNotify> {
        let byte = self.clear.unwrap_or(0);
        let mut action = NotifyFlags::empty();
        action.set(NotifyFlags::CLEAR_BYTE, self.clear.is_some());
        action.set(NotifyFlags::SEND_EVENT, self.notify.is_some());
        let page = u64::from(page).checked_mul(u64::try_from(PAGE_SIZE).ok()?)?;
        (usize::from(byte) < PAGE_SIZE).then_some(UnmapNotify {
            index: index.checked_add(page)?.checked_add(byte.into())?,
            action: action.bits(),
            port: self.notify.unwrap_or_default(),
        })
    }
}

fn open(options: &mut OpenOptions, path: &Path) -> Result<File, LinuxError> {
    options
        .read(true)
        .write(true)
        .open(path)
        .map_err(|source| LinuxError::Open {
            path: path.to_owned(),
            source,
        })
}

/// Arranges what happens when page `page` of those at `index` is unmapped.
fn arrange(file: &File, index: u64, page: u32, what: OnUnmap) -> Result<(), LinuxError> {
    let request = what.request(index, page);
    let result = match request {
        Some(request) => sys::call(file, request).map(drop),
        None => Err(io::ErrorKind::InvalidInput.into()),
    };
    result.map_err(|source| LinuxError::OnUnmap { page, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happens_on_unmap_names_a_byte_of_the_file() {
        let request = |clear, notify, page| OnUnmap { clear, notify }.request(0x3000, page);
        let both = request(Some(5), Some(Port(7)), 2);
        let both = both.map(|request| (request.index, request.action, request.port));
        assert_eq!(both, Some((0x5005, 3, Port(7))));
        let none = request(None, None, 0).map(|request| (request.index, request.action));
        assert_eq!(none, Some((0x3000, 0)));
        assert!(request(Some(4096), None, 0).is_none());
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let error = open(&mut OpenOptions::new(), Path::new("/dev/xen/none"));
        let error = error.map_or_else(|error| error.to_string(), |_| String::new());
        assert_eq!(error, "cannot open /dev/xen/none");
    }
}
