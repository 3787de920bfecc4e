//! A modelled device as a region of a [`pio_mmio_bus::bus::Bus`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pio_mmio_bus::bus::{
    Access as HookAccess, AccessError, Bus, BusDevice, BusError, Hook, Outcome, RegionId,
    Suspension, Verdict,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::arbiter::{Arbiter, GuestId, Handover, Sharing};
use crate::engine::{At, Denied, Dma, Engine, Passthrough, Physical};
use crate::language::Access;
#[cfg(doc)]
use crate::language::Policy;
use crate::model::{Lookup, Model};

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

impl<D: Dma + Send + 'static, P: Physical + Clone + Send + Sync + 'static> Region<D, P> {
    /// Puts the space on a bus, from `base` on. What is free both ways leads to the device as if there were no model; an access that
    /// is not aligned and is partly there fails. What was put there, in the order of addresses.
    ///
    /// # Errors
    ///
    /// It cannot be there; nothing was put there.
    pub fn insert(self, bus: &Bus, base: u64, name: &str) -> Result<Vec<RegionId>, BusError> {
        let number = usize::from(self.space);
        let size = self.model.spaces().get(number).map_or(0, |s| s.size);
        let lookup = self.model.lookups.get(number);
        let free = lookup.map(Lookup::free_ranges).unwrap_or_default();
        let (mut parts, mut next) = (Vec::new(), 0);
        for range in free {
            parts.push((next..range.start, false));
            next = range.end;
            parts.push((range, true));
        }
        parts.push((next..size, false));
        parts.retain(|(part, _)| !part.is_empty());
        let region = Arc::new(self);
        let device = |first, is_free| -> Arc<dyn BusDevice> {
            let region = Arc::clone(&region);
            if is_free {
                let (physical, space) = (region.physical.clone(), region.space);
                Arc::new(Free {
                    physical,
                    space,
                    first,
                })
            } else {
                Arc::new(Modelled { region, first })
            }
        };
        let mut inserted = Vec::new();
        for (part, is_free) in parts {
            let first = base.saturating_add(part.start);
            let length = part.end - part.start;
            match bus.insert(first, length, name, device(part.start, is_free)) {
                Ok(id) => inserted.push(id),
                Err(error) => {
                    for id in inserted {
                        // It was put there just now.
                        let _removed = bus.remove(id);
                    }
                    return Err(error);
                }
            }
        }
        Ok(inserted)
    }
}

/// A part of a region, from `first` on.
struct Modelled<D, P> {
    region: Arc<Region<D, P>>,
    first: u64,
}

impl<D: Dma + Send, P: Physical + Send + Sync> BusDevice for Modelled<D, P> {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.region.read(self.first + offset, data)
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.region.write(self.first + offset, data)
    }
}

/// A part of a device that its model has no interest in.
struct Free<P> {
    physical: P,
    space: u8,
    first: u64,
}

impl<P: Physical + Send + Sync> BusDevice for Free<P> {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let at = at(self.space, self.first + offset, data.len())?;
        put(data, self.physical.read(at.space, at.offset, at.width));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let (width, value) = number(offset, data)?;
        let offset = self.first + offset;
        self.physical.write(self.space, offset, width, value);
        Ok(())
    }
}

fn at(space: u8, offset: u64, width: usize) -> Result<At, AccessError> {
    match (width, u8::try_from(width)) {
        (1 | 2 | 4 | 8, Ok(width)) => Ok(At {
            space,
            offset,
            width,
        }),
        _ => Err(AccessError::Width { offset, width }),
    }
}

/// The width of a little-endian number of 1, 2, 4 or 8 bytes, and the number.
#[inline]
pub(crate) fn number(offset: u64, data: &[u8]) -> Result<(u8, u64), AccessError> {
    match *data {
        [a] => Ok((1, a.into())),
        [a, b] => Ok((2, u16::from_le_bytes([a, b]).into())),
        [a, b, c, d] => Ok((4, u32::from_le_bytes([a, b, c, d]).into())),
        [a, b, c, d, e, f, g, h] => Ok((8, u64::from_le_bytes([a, b, c, d, e, f, g, h]))),
        _ => Err(AccessError::Width {
            offset,
            width: data.len(),
        }),
    }
}

fn put(data: &mut [u8], value: u64) {
    for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
        *to = from;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D, P> Region<D, P> {
    fn is_free(&self, access: Access, at: At) -> bool {
        let lookup = self.model.lookups.get(usize::from(at.space));
        lookup.is_some_and(|lookup| {
            let found = lookup.find(access, at.offset, at.width.into());
            found.is_free(at.width)
        })
    }

    fn refuse(&self, at: At, access: Access, denied: &Denied) -> AccessError {
        self.sink.denied(at, access, denied);
        AccessError::Denied { offset: at.offset }
    }
}

impl<D: Dma + Send, P: Physical + Send + Sync> BusDevice for Region<D, P> {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let at = at(self.space, offset, data.len())?;
        let value = if self.is_free(Access::Read, at) {
            self.physical.read(at.space, at.offset, at.width)
        } else {
            let value = lock(&self.device).read(at);
            value.map_err(|denied| self.refuse(at, Access::Read, &denied))?
        };
        put(data, value);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let (width, value) = number(offset, data)?;
        let at = At {
            space: self.space,
            offset,
            width,
        };
        if self.is_free(Access::Write, at) {
            self.physical.write(at.space, at.offset, at.width, value);
            return Ok(());
        }
        let done = lock(&self.device).write(at, value);
        done.map_err(|denied| self.refuse(at, Access::Write, &denied))
    }
}

/// A device that several guests share: an [`Arbiter`] that their buses reach.
pub struct Shared<D, P> {
    arbiter: Mutex<Arbiter<D, P>>,
}

impl<D: Dma, P: Physical> Shared<D, P> {
    /// Nobody has the device.
    pub fn new(physical: P, sharing: Sharing) -> Arc<Self> {
        let arbiter = Mutex::new(Arbiter::new(physical, sharing));
        Arc::new(Self { arbiter })
    }

    /// Adds a guest. What it gets is the hook and, with [`Port::region`], the device of each of its regions.
    ///
    /// # Errors
    ///
    /// There is no eventfd to be had.
    pub fn add(self: &Arc<Self>, engine: Engine<D>) -> std::io::Result<Port<D, P>> {
        let turn = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let signal = turn.clone();
        let wake = move |_: &Handover| {
            // A counter that is full is readable too.
            let _full = signal.write(1);
        };
        let guest = lock(&self.arbiter).add(engine, Box::new(wake));
        Ok(Port {
            shared: self.clone(),
            guest,
            turn,
            space: 0,
        })
    }

    /// What is not an access: interrupts, input, time.
    pub fn with<T>(&self, f: impl FnOnce(&mut Arbiter<D, P>) -> T) -> T {
        f(&mut lock(&self.arbiter))
    }
}

/// A guest's way to a shared device. As the hook of the guest's regions it suspends accesses until it is the guest's turn; as their
/// device it carries them out.
pub struct Port<D, P> {
    shared: Arc<Shared<D, P>>,
    guest: GuestId,
    turn: Arc<EventFd>,
    space: u8,
}

impl<D, P> Port<D, P> {
    /// The guest's name.
    pub fn guest(&self) -> GuestId {
        self.guest
    }

    /// The same for another space.
    pub fn region(&self, space: u8) -> Self {
        Self {
            shared: self.shared.clone(),
            guest: self.guest,
            turn: self.turn.clone(),
            space,
        }
    }
}

impl<D: Dma + Send, P: Physical + Send> Hook for Port<D, P> {
    fn before(&self, _access: &HookAccess<'_>) -> Verdict {
        let mut arbiter = lock(&self.shared.arbiter);
        if arbiter.enter(self.guest) {
            return Verdict::Allow;
        }
        // Under the lock: no turn of this guest comes in between.
        let _empty = self.turn.read();
        Verdict::Suspend(Suspension::new(self.turn.clone()))
    }

    fn after(&self, _access: &HookAccess<'_>, _data: &[u8], _outcome: &Outcome) {
        lock(&self.shared.arbiter).leave(self.guest);
    }
}

impl<D: Dma + Send, P: Physical + Send> BusDevice for Port<D, P> {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let at = at(self.space, offset, data.len())?;
        let value = lock(&self.shared.arbiter).read(self.guest, at);
        put(data, value.map_err(|_| AccessError::Denied { offset })?);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let (width, value) = number(offset, data)?;
        let at = At {
            space: self.space,
            offset,
            width,
        };
        let done = lock(&self.shared.arbiter).write(self.guest, at, value);
        done.map_err(|_| AccessError::Denied { offset })
    }
}
