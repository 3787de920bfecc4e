//! Block devices over a ring: the front end that a guest has, and the back end that serves it.

mod back;
mod front;

pub use back::{BlockBack, Limits};
pub use front::{BlockFront, FrontError};

use std::io;

/// What a back end serves. Sectors have 512 bytes, and those asked for are on the disk.
pub trait Disk: Send {
    /// How many sectors there are.
    fn sectors(&self) -> u64;

    /// Reads from `sector` on.
    ///
    /// # Errors
    ///
    /// The disk's own.
    fn read(&mut self, sector: u64, bytes: &mut [u8]) -> io::Result<()>;

    /// Writes from `sector` on.
    ///
    /// # Errors
    ///
    /// The disk's own.
    fn write(&mut self, sector: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes what was written last.
    ///
    /// # Errors
    ///
    /// The disk's own.
    fn flush(&mut self) -> io::Result<()>;

    /// Forgets sectors.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::Unsupported`] is told to the guest as such.
    fn discard(&mut self, sector: u64, sectors: u64) -> io::Result<()> {
        let _ = (sector, sectors);
        Err(io::ErrorKind::Unsupported.into())
    }
}
