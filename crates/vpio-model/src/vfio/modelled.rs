use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pio_mmio_bus::bus::BusDevice;
use sriov_vfio::vfio::{Interrupt, RegionIndex, VfioDevice};
use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::counts::{Counters, Counts, count};
use super::regions::Regions;
use super::relay::{Event, Relay};
use crate::bus::{self, DenialSink};
use crate::engine::{Dma, Engine, Passthrough};
use crate::model::{Model, Sharing};

/// Why a device cannot be put behind a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelledError {
    /// It is not the device that the model describes.
    #[error("model {model:?}: the device has no BAR of {size:#x} bytes for the space `{space}`")]
    Space {
        /// The model.
        model: String,
        /// The space of the model.
        space: String,
        /// Its size in bytes.
        size: u64,
    },
    /// It cannot be reset, so that nobody knows what it does.
    #[error("the device cannot be reset: a model begins where a reset ends")]
    Reset,
}

type Device<D> = Arc<Mutex<Passthrough<D, Arc<Regions>>>>;

/// A device behind its model, for one guest. An access that the model denies fails.
///
/// What it is around must be nobody else's, and reach no memory but what `D` says. Configuration space is passed on as it is asked for.
/// Nothing is mapped into the guest: each access is seen, and counted.
pub struct Modelled<D> {
    inner: Arc<dyn VfioDevice>,
    physical: Arc<Regions>,
    device: Device<D>,
    /// By their BARs.
    regions: Vec<(u8, bus::Region<D, Arc<Regions>>)>,
    counters: Arc<Counters>,
    ticks: bool,
    relays: Mutex<Vec<(Interrupt, Relay)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D: Dma + Send + 'static> Modelled<D> {
    /// Resets `inner` and puts it behind `model`, which should have been [checked](Model::check). `sink` is told of what is denied.
    ///
    /// # Errors
    ///
    /// It is no such device, or cannot be reset.
    pub fn new(
        inner: Arc<dyn VfioDevice>,
        model: &Model,
        dma: D,
        sink: &Arc<dyn DenialSink>,
    ) -> Result<Self, ModelledError> {
        let regions = Regions::new(Arc::clone(&inner), model.spaces());
        let physical = Arc::new(regions.map_err(|space| ModelledError::Space {
            model: model.name().to_owned(),
            space: space.name.clone(),
            size: space.size,
        })?);
        let model = Arc::new(model.for_sharing(Sharing::Exclusive));
        let ticks = model.needs_time();
        let passthrough = Passthrough::new(Engine::new(model, dma), Arc::clone(&physical));
        if physical.is_lost() {
            return Err(ModelledError::Reset);
        }
        let device = Arc::new(Mutex::new(passthrough));
        let regions = physical
            .bars()
            .map(|(bar, space)| {
                let region = bus::Region::new(Arc::clone(&device), space, Arc::clone(sink));
                (bar, region)
            })
            .collect();
        Ok(Self {
            inner,
            physical,
            device,
            regions,
            counters: Arc::default(),
            ticks,
            relays: Mutex::default(),
        })
    }

    /// What happened until now.
    pub fn counts(&self) -> Counts {
        Counts {
            hooked: lock(&self.device).counts().hooked,
            ..self.counters.counts()
        }
    }

    /// The part of the device that a BAR is. An access is counted.
    fn region(&self, bar: u8) -> io::Result<&bus::Region<D, Arc<Regions>>> {
        count(&self.counters.accesses);
        let region = self.regions.iter().find(|(known, ..)| *known == bar);
        let Some((_, region)) = region.filter(|_| !self.physical.is_lost()) else {
            count(&self.counters.denied);
            return Err(ErrorKind::PermissionDenied.into());
        };
        Ok(region)
    }

    fn done<E>(&self, result: Result<(), E>) -> io::Result<()> {
        result.map_err(|_| {
            count(&self.counters.denied);
            ErrorKind::PermissionDenied.into()
        })
    }
}

impl<D: Dma + Send + 'static> VfioDevice for Modelled<D> {
    fn region(&self, index: RegionIndex) -> sriov_vfio::vfio::Region {
        let size = self.inner.region(index).size;
        sriov_vfio::vfio::Region {
            size,
            mappable: Vec::new(),
        }
    }

    fn read(&self, index: RegionIndex, offset: u64, data: &mut [u8]) -> io::Result<()> {
        match index {
            RegionIndex::Config => self.inner.read(index, offset, data),
            RegionIndex::Bar(bar) => {
                let region = self.region(bar)?;
                self.done(region.read(offset, data))
            }
        }
    }

    fn write(&self, index: RegionIndex, offset: u64, data: &[u8]) -> io::Result<()> {
        match index {
            RegionIndex::Config => self.inner.write(index, offset, data),
            RegionIndex::Bar(bar) => {
                let region = self.region(bar)?;
                self.done(region.write(offset, data))
            }
        }
    }

    fn map(&self, _index: RegionIndex, _part: Range<u64>) -> io::Result<MmapRegion> {
        Err(ErrorKind::Unsupported.into())
    }

    fn vectors(&self, interrupt: Interrupt) -> u32 {
        self.inner.vectors(interrupt)
    }

    fn grows(&self, interrupt: Interrupt) -> bool {
        self.inner.grows(interrupt)
    }

    /// The model is told of an interrupt before whoever waits for it.
    fn connect(
        &self,
        interrupt: Interrupt,
        first: u32,
        eventfds: &[Option<&EventFd>],
    ) -> io::Result<()> {
        let nothing = eventfds.iter().all(Option::is_none);
        if nothing || matches!(interrupt, Interrupt::Error | Interrupt::Request) {
            return self.inner.connect(interrupt, first, eventfds);
        }
        let (mut sources, mut targets) = (Vec::new(), Vec::new());
        for eventfd in eventfds.iter().copied().flatten() {
            sources.push(EventFd::new(EFD_NONBLOCK)?);
            targets.push(eventfd.try_clone()?);
        }
        let mut connected = sources.iter();
        let connected = eventfds
            .iter()
            .map(|eventfd| eventfd.and_then(|_| connected.next()));
        let connected: Vec<_> = connected.collect();
        self.inner.connect(interrupt, first, &connected)?;
        let mut relays = lock(&self.relays);
        let (device, counters) = (Arc::clone(&self.device), Arc::clone(&self.counters));
        let tell = move |event| match event {
            Event::Interrupt(vector) => {
                count(&counters.interrupts);
                // What the model makes of it, it has counted; the guest is told all the same.
                let _denied = lock(&device).interrupt();
                // Nobody but a full counter refuses.
                let _full = targets.get(vector).map(|target| target.write(1));
            }
            Event::Tick => {
                let _denied = lock(&device).timer();
            }
        };
        // One of them tells of time.
        let ticks = self.ticks && relays.is_empty();
        relays.push((interrupt, Relay::start(sources, ticks, tell)?));
        Ok(())
    }

    fn disconnect(&self, interrupt: Interrupt) -> io::Result<()> {
        self.inner.disconnect(interrupt)?;
        lock(&self.relays).retain(|(kind, _)| *kind != interrupt);
        Ok(())
    }

    fn resample(&self, eventfd: &EventFd) -> io::Result<()> {
        self.inner.resample(eventfd)
    }

    /// Resets device and model.
    fn reset(&self) -> io::Result<()> {
        lock(&self.device).reset();
        if self.physical.is_lost() {
            return Err(io::Error::other("the device was not reset"));
        }
        Ok(())
    }
}
