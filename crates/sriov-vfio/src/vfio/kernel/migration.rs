use std::io::{self, ErrorKind, Read, Write};
use std::sync::PoisonError;

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FEATURE_GET, VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE, VFIO_DEVICE_FEATURE_MIGRATION,
    VFIO_DEVICE_FEATURE_SET, VFIO_MIGRATION_STOP_COPY,
};

use super::function::OpenFunction;
use super::ioctls;
use crate::vfio::migration::{DeviceState, Migration};

impl OpenFunction {
    /// Whether its driver in the kernel can stop it and copy its state.
    pub(super) fn is_migratable(&self) -> bool {
        let flags = VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_MIGRATION;
        ioctls::feature(&self.file, flags, [0; 2])
            .is_ok_and(|[low, _]| low & VFIO_MIGRATION_STOP_COPY != 0)
    }
}

impl Migration for OpenFunction {
    fn set_state(&self, state: DeviceState) -> io::Result<()> {
        let flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE;
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        // What went through it has ended, whatever comes of this.
        *stream = None;
        *stream = ioctls::set_migration_state(&self.file, flags, state.number())?;
        Ok(())
    }

    fn read_state(&self, data: &mut [u8]) -> io::Result<usize> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream.as_mut().ok_or(ErrorKind::InvalidInput)?.read(data)
    }

    fn write_state(&self, data: &[u8]) -> io::Result<()> {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        stream
            .as_mut()
            .ok_or(ErrorKind::InvalidInput)?
            .write_all(data)
    }
}
