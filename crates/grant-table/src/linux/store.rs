//! `/proc/xen/xsd_kva` and `/proc/xen/xsd_port`: the page and the port by which domain 0's kernel asks the store.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;

use super::sys::Mapping;
use super::{LinuxError, open};
use crate::frame::Frame;
use crate::guest::Access;
use crate::spec::event::Port;

/// How the kernel of this domain, the first, asks the store, which a program must serve. There may be one such program from boot on.
#[derive(Debug)]
pub struct KernelStore {
    /// The page, for a [`Connection`](crate::xenstore::Connection).
    pub page: Frame,
    /// The kernel's port, to connect to. The kernel finds its devices when the first event comes.
    pub port: Port,
}

impl KernelStore {
    /// Maps the page.
    ///
    /// # Errors
    ///
    /// [`LinuxError::Open`]: this is not domain 0, or `xenfs` is not mounted at `/proc/xen`.
    pub fn open() -> Result<Self, LinuxError> {
        let (page, port) = (
            Path::new("/proc/xen/xsd_kva"),
            Path::new("/proc/xen/xsd_port"),
        );
        let failed = |path: &Path, source| LinuxError::Open {
            path: path.to_owned(),
            source,
        };
        let number = fs::read_to_string(port)
            .and_then(|text| text.trim().parse().map_err(io::Error::other))
            .map_err(|source| failed(port, source))?;
        let file = open(&mut OpenOptions::new(), page)?;
        let frame = Mapping::new(&file, 0, 1, Access::ReadWrite, ())
            .map(|mapping| mapping.frame(0))
            .map_err(|source| failed(page, source))?;
        Ok(Self {
            page: frame.ok_or_else(|| failed(page, io::ErrorKind::AddrNotAvailable.into()))?,
            port: Port(number),
        })
    }
}
