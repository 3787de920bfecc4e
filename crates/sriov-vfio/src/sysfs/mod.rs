//! Physical and virtual functions of this machine, through sysfs: what there is, how many virtual functions are enabled, who drives
//! them (Linux, Documentation/ABI/testing/sysfs-bus-pci).
//!
//! [`Sysfs`] reads below a root folder and writes through an [`Attributes`]. [`fake::FakeSysfs`] is a tree in an ordinary folder that
//! answers writes as a kernel would, as far as SR-IOV and drivers go: tests run on it. It is no substitute for the real thing,
//! which the lab has.

mod address;
mod binding;
mod error;
pub mod fake;
mod inventory;
mod physical;

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

pub use address::{AddressError, PciAddress};
pub use binding::Bindings;
#[cfg(feature = "vfio")]
pub(crate) use binding::is_of_vfio;
pub use error::SysfsError;
pub use inventory::{Function, Role};

/// Writes to the files of sysfs.
pub trait Attributes: Send + Sync {
    /// Writes `value` to the file at `path` in one piece. It is never created.
    fn write(&self, path: &Path, value: &str) -> io::Result<()>;
}

/// The files as they are: the real sysfs, or a folder that only remembers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files;

impl Attributes for Files {
    fn write(&self, path: &Path, value: &str) -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(path)?;
        file.write_all(value.as_bytes())
    }
}

/// Access to sysfs. Cheap to clone.
#[derive(Clone)]
pub struct Sysfs {
    root: PathBuf,
    attributes: Arc<dyn Attributes>,
}

impl Default for Sysfs {
    /// This machine's, at `/sys`.
    fn default() -> Self {
        Self::new("/sys", Arc::new(Files))
    }
}

impl Sysfs {
    /// A sysfs at `root` that is written through `attributes`.
    pub fn new(root: impl Into<PathBuf>, attributes: Arc<dyn Attributes>) -> Self {
        Self {
            root: root.into(),
            attributes,
        }
    }

    /// The folder of a function.
    pub fn folder(&self, address: PciAddress) -> PathBuf {
        self.bus().join("devices").join(address.to_string())
    }

    fn bus(&self) -> PathBuf {
        self.root.join("bus/pci")
    }

    fn driver(&self, name: &str) -> PathBuf {
        self.bus().join("drivers").join(name)
    }

    fn write(&self, path: PathBuf, value: &str) -> Result<(), SysfsError> {
        let written = self.attributes.write(&path, value);
        written.map_err(|error| SysfsError::io(path, error))
    }
}

/// The text of a file without the line end; `None` if there is no such file.
fn read(path: &Path) -> Result<Option<String>, SysfsError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(SysfsError::io(path.to_owned(), error)),
    }
}

/// The number in a file, decimal or with `0x`; `None` if there is no such file.
fn number<T: TryFrom<u64>>(path: &Path) -> Result<Option<T>, SysfsError> {
    let Some(text) = read(path)? else {
        return Ok(None);
    };
    let value = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => u64::from_str(&text).ok(),
    };
    match value.and_then(|value| T::try_from(value).ok()) {
        Some(value) => Ok(Some(value)),
        None => Err(SysfsError::Parse {
            path: path.to_owned(),
            text,
        }),
    }
}

/// The last part of what a symbolic link points to; `None` if there is no link.
fn link(path: &Path) -> Option<String> {
    let target = fs::read_link(path).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

/// The names in a folder, sorted; none if there is no folder.
fn names(path: &Path) -> Result<Vec<String>, SysfsError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(SysfsError::io(path.to_owned(), error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| SysfsError::io(path.to_owned(), error))?;
        names.extend(entry.file_name().into_string());
    }
    names.sort();
    Ok(names)
}
