//! Migration of a device whose driver in the kernel can do it (Linux, `VFIO_DEVICE_FEATURE_MIGRATION`, version 2).

use std::io;

use pio_mmio_bus::pci::{MsixState, VectorsError};
use serde::{Deserialize, Serialize};

/// How a device is, as far as it is told here (Linux, `enum vfio_device_mig_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceState {
    /// No DMA, no interrupts, and nothing of it changes.
    Stop,
    /// As ever.
    Running,
    /// Stopped, and its state can be read.
    StopCopy,
    /// Stopped, and takes a state.
    Resuming,
}

impl DeviceState {
    /// As the kernel numbers it.
    pub const fn number(self) -> u32 {
        match self {
            Self::Stop => 1,
            Self::Running => 2,
            Self::StopCopy => 3,
            Self::Resuming => 4,
        }
    }
}

/// A device that can be stopped, and whose state can be taken and put into another like it.
pub trait Migration: Send + Sync {
    /// Brings the device into another state. If it fails the device may have to be reset.
    fn set_state(&self, state: DeviceState) -> io::Result<()>;

    /// Reads some of its state, in [`DeviceState::StopCopy`]; 0 bytes at the end.
    fn read_state(&self, data: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `data`, in [`DeviceState::Resuming`]. What makes no sense may also be refused by the next state.
    fn write_state(&self, data: &[u8]) -> io::Result<()>;
}

/// What a guest can observe of an assigned function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedState {
    /// Configuration space as the VMM keeps it, 4096 bytes.
    pub config: Vec<u8>,
    /// The table and pending bits of MSI-X, if it has that.
    pub msix: Option<MsixState>,
    /// The pending bits of MSI, if it has that.
    pub msi_pending: Option<u32>,
    /// The device's own, which its driver in the kernel alone understands, and checks.
    pub device: Vec<u8>,
}

/// Why an assigned function could not be saved or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError {
    /// The device's driver in the kernel cannot.
    #[error("the device cannot be migrated")]
    Unsupported,
    /// The device has more state than the caller takes.
    #[error("the device's state has more than {0} bytes")]
    TooLarge(usize),
    /// It is the state of another kind of function, or of none.
    #[error("the saved configuration space differs at {0:#x}, where the guest cannot write")]
    Config(usize),
    /// It is the state of a function without MSI or MSI-X, or with another number of vectors.
    #[error("the saved state has other vectors")]
    Kind,
    /// It is the state of a function with another number of vectors.
    #[error(transparent)]
    Vectors(#[from] VectorsError),
    /// The device refused.
    #[error("the device: {0}")]
    Device(#[from] io::Error),
}

/// Bytes that are read at a time.
const CHUNK: usize = 1 << 16;

/// Stops the device and takes its state, of at most `limit` bytes.
pub(super) fn save(device: &dyn Migration, limit: usize) -> Result<Vec<u8>, MigrationError> {
    device.set_state(DeviceState::StopCopy)?;
    let mut state = Vec::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = device.read_state(&mut chunk)?;
        let read = chunk.get(..count).unwrap_or(&chunk);
        if read.is_empty() {
            break;
        }
        if state.len().saturating_add(read.len()) > limit {
            return Err(MigrationError::TooLarge(limit));
        }
        state.extend_from_slice(read);
    }
    device.set_state(DeviceState::Stop)?;
    Ok(state)
}

/// Puts a state into the device, which stays stopped.
pub(super) fn load(device: &dyn Migration, state: &[u8]) -> Result<(), MigrationError> {
    device.set_state(DeviceState::Resuming)?;
    device.write_state(state)?;
    Ok(device.set_state(DeviceState::Stop)?)
}
