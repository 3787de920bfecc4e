//! A modelled device as a region of a [`pio_mmio_bus::bus::Bus`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pio_mmio_bus::bus::{AccessError, BusDevice};

use crate::engine::{At, Denied, Dma, Passthrough, Physical};
use crate::language::Access;
#[cfg(doc)]
use crate::language::Policy;
use crate::model::{Found, Model};

/// Told of what is denied.
pub trait DenialSink: Send + Sync {
    /// The access was denied. [`Policy::Reset`] is done already; [`Policy::MachineCheck`] is for this sink to do.
    fn denied(&self, at: At, access: Access, denied: &Denied);
}

/// Takes no notice.
impl DenialSink for () {
    fn denied(&self, _at: At, _access: Access, _denied: &Denied) {}
}

/// One space of a device. All spaces of a device share its model.
pub struct Region<D, P> {
    model: Arc<Model>,
    device: Arc<Mutex<Passthrough<D, P>>>,
    /// The way for accesses that change nothing.
    physical: P,
    space: u8,
    sink: Arc<dyn DenialSink>,
}

impl<D: Dma, P: Physical + Clone> Region<D, P> {
    /// The space with this number. Accesses that the model does not need to see take no lock: `P` is a handle of the device.
    pub fn new(
        device: Arc<Mutex<Passthrough<D, P>>>,
        space: u8,
        sink: Arc<dyn DenialSink>,
    ) -> Self {
        let (model, physical) = {
            let device = lock(&device);
            (device.engine().model().clone(), device.physical().clone())
        };
        Self {
            model,
            device,
            physical,
            space,
            sink,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D, P> Region<D, P> {
    fn at(&self, offset: u64, width: usize) -> Result<At, AccessError> {
        match width {
            1 | 2 | 4 | 8 => Ok(At {
                space: self.space,
                offset,
                width: u8::try_from(width).unwrap_or(8),
            }),
            _ => Err(AccessError::Width { offset, width }),
        }
    }

    fn is_free(&self, access: Access, at: At) -> bool {
        let lookup = self.model.lookups.get(usize::from(at.space));
        lookup.is_some_and(|lookup| lookup.find(access, at.offset, at.width.into()) == Found::Free)
    }

    fn refuse(&self, at: At, access: Access, denied: &Denied) -> AccessError {
        self.sink.denied(at, access, denied);
        AccessError::Denied { offset: at.offset }
    }
}

impl<D: Dma + Send, P: Physical + Send + Sync> BusDevice for Region<D, P> {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let at = self.at(offset, data.len())?;
        let value = if self.is_free(Access::Read, at) {
            self.physical.read(at.space, at.offset, at.width)
        } else {
            let value = lock(&self.device).read(at);
            value.map_err(|denied| self.refuse(at, Access::Read, &denied))?
        };
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let at = self.at(offset, data.len())?;
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u64::from_le_bytes(word);
        if self.is_free(Access::Write, at) {
            self.physical.write(at.space, at.offset, at.width, value);
            return Ok(());
        }
        let done = lock(&self.device).write(at, value);
        done.map_err(|denied| self.refuse(at, Access::Write, &denied))
    }
}
