//! Disk images.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use virtio_devices::block::FileDisk;

/// First bytes of images in QEMU's format, which this VMM does not read.
const QCOW_MAGIC: [u8; 4] = *b"QFI\xfb";

/// A raw disk image that was opened.
pub struct Disk {
    /// The image.
    pub image: FileDisk,
    /// What the guest's driver shows as its identity: 20 bytes of the file's name.
    pub id: String,
}

/// Why a disk image could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It could not be opened or read.
    #[error("cannot open the disk image {}: {source}", path.display())]
    Open {
        /// Its name.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// It is not raw.
    #[error("the disk image {} is in QEMU's qcow format: convert it with `qemu-img convert -O raw`", .0.display())]
    Qcow(PathBuf),
    /// It has no sectors.
    #[error("the disk image {} is smaller than one sector of 512 bytes", .0.display())]
    Empty(PathBuf),
}

impl Disk {
    /// Opens the raw image at `path`.
    pub fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Open {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(!read_only)
            .open(path)
            .map_err(failed)?;
        let mut magic = [0; 512];
        match file.read_exact(&mut magic).and_then(|()| file.rewind()) {
            Ok(()) if magic.starts_with(&QCOW_MAGIC) => {
                return Err(DiskError::Qcow(path.to_owned()));
            }
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(DiskError::Empty(path.to_owned()));
            }
            Err(error) => return Err(failed(error)),
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Ok(Self {
            image: FileDisk::new(file, read_only).map_err(failed)?,
            id: name.into_owned(),
        })
    }
}
