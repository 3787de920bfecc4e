use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pio_mmio_bus::interrupt::{MsiRoute, MsiRouter};
use pio_mmio_bus::pci::spec::{msi, msix};
use pio_mmio_bus::pci::{CapabilityHandler, Msi, Msix, MsixState, RequesterId, VectorsError};
use vmm_sys_util::eventfd::EventFd;

use super::config::{MsiPlace, MsixPlace, VirtualConfig};
use super::device::{Interrupt, VfioDevice};
use super::migration::MigrationError;
use super::vectors::{VectorRoute, Vectors};

/// How a function interrupts. The device signals eventfds of one kind at a time: MSI-X if the guest enabled it, else MSI, else the pin; and of a
/// kind's vectors only those that the guest has unmasked since, as the others cost the host vectors too.
pub(super) struct Interrupts {
    device: Arc<dyn VfioDevice>,
    msix: Option<(MsixPlace, Arc<Msix>, Vec<Arc<VectorRoute>>)>,
    msi: Option<(MsiPlace, Arc<Msi>, Vec<Arc<VectorRoute>>)>,
    /// Set when the guest unmasked a vector.
    opened: Arc<AtomicBool>,
    wiring: Mutex<Wiring>,
}

/// What the device signals.
#[derive(Default)]
struct Wiring {
    /// What the pin signals, and what unmasks it.
    pin: Option<(EventFd, EventFd)>,
    /// The kind that is switched on, and which of the vectors that it was switched on with signal.
    on: Option<(Interrupt, Vec<bool>)>,
}

impl Interrupts {
    /// Vectors with routes of `router` for what `config` shows. Of MSI's vectors it shows fewer from now on if the host has fewer.
    pub(super) fn new(
        device: Arc<dyn VfioDevice>,
        config: &mut VirtualConfig,
        router: &dyn MsiRouter,
    ) -> Result<Self, VectorsError> {
        let opened = Arc::default();
        let msix = match config.msix() {
            Some(place) => {
                let vectors = Vectors::new(router, &opened);
                let msix = Msix::new(place.vectors, &vectors)?;
                Some((place, msix, vectors.into_routes()))
            }
            None => None,
        };
        let msi = match config.msi() {
            Some(place) => {
                let count = available(&*device, place.vectors);
                config.limit_msi(count);
                let vectors = Vectors::new(router, &opened);
                let msi = Msi::new(count, &vectors)?;
                Some((place, msi, vectors.into_routes()))
            }
            None => None,
        };
        Ok(Self {
            device,
            msix,
            msi,
            opened,
            wiring: Mutex::default(),
        })
    }

    pub(super) fn msix(&self) -> Option<(&MsixPlace, &Arc<Msix>)> {
        let (place, msix, _) = self.msix.as_ref()?;
        Some((place, msix))
    }

    fn handlers(&self) -> impl Iterator<Item = &dyn CapabilityHandler> {
        let msix = self.msix.iter().map(|(_, msix, _)| &**msix as _);
        msix.chain(self.msi.iter().map(|(_, msi, _)| &**msi as _))
    }

    fn wiring(&self) -> MutexGuard<'_, Wiring> {
        self.wiring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_requester(&self, requester: RequesterId) {
        self.handlers()
            .for_each(|handler| handler.set_requester(requester));
    }

    pub(super) fn set_pin(&self, pin: (EventFd, EventFd)) {
        self.wiring().pin = Some(pin);
    }

    /// MSI-X's table and pending bits, and MSI's pending bits.
    pub(super) fn save(&self) -> (Option<MsixState>, Option<u32>) {
        let msix = self.msix.as_ref().map(|(_, msix, _)| msix.save());
        let msi = self.msi.as_ref().map(|(_, msi, _)| msi.save_pending());
        (msix, msi)
    }

    /// Takes them over. Refuses, and changes nothing, if they are another kind of function's.
    pub(super) fn restore(
        &self,
        msix: Option<&MsixState>,
        msi: Option<u32>,
    ) -> Result<(), MigrationError> {
        if msix.is_some() != self.msix.is_some() || msi.is_some() != self.msi.is_some() {
            return Err(MigrationError::Kind);
        }
        if let (Some((_, own, _)), Some(saved)) = (&self.msix, msix) {
            own.restore(saved)?;
        }
        if let (Some((_, own, _)), Some(saved)) = (&self.msi, msi) {
            own.restore_pending(saved);
        }
        Ok(())
    }

    /// Lets `config` show the pending bits of MSI.
    pub(super) fn refresh(&self, config: &mut VirtualConfig) {
        if let Some((place, msi, _)) = &self.msi
            && let Some(offset) = place.pending()
        {
            let mut registers = [0; msi::LENGTH];
            msi.refresh(&mut registers, msi::PENDING..msi::LENGTH);
            config.keep(offset, registers.get(msi::PENDING..).unwrap_or_default());
        }
    }

    /// Lets the registers take effect.
    pub(super) fn apply(&self, config: &VirtualConfig, bus_master: bool) -> io::Result<()> {
        if let Some((place, msix, _)) = &self.msix {
            let registers = config.kept(place.capability..place.capability + msix::LENGTH);
            msix.written(registers, 0..registers.len());
        }
        if let Some((place, msi, _)) = &self.msi {
            msi.written(&place.registers(config), 0..msi::LENGTH);
        }
        self.handlers()
            .for_each(|handler| handler.set_bus_master(bus_master));
        self.wire()
    }

    /// Wires the vectors that the guest unmasked in the table of MSI-X, if there are any.
    pub(super) fn unmasked(&self) -> io::Result<()> {
        match self.opened.load(Ordering::Acquire) {
            true => self.wire(),
            false => Ok(()),
        }
    }

    /// The vectors that the guest enabled, of MSI-X or of MSI.
    fn enabled(&self) -> Option<(Interrupt, &[Arc<VectorRoute>])> {
        if let Some((_, msix, routes)) = &self.msix
            && msix.enabled()
        {
            return Some((Interrupt::Msix, routes));
        }
        let (_, msi, routes) = self.msi.as_ref()?;
        let granted = routes.get(..msi.granted().into())?;
        (!granted.is_empty()).then_some((Interrupt::Msi, granted))
    }

    /// Brings what the device signals in line with what the guest enabled and unmasked.
    fn wire(&self) -> io::Result<()> {
        let mut wiring = self.wiring();
        self.opened.store(false, Ordering::Release);
        let Some((kind, routes)) = self.enabled() else {
            return wiring.wire_pin(&*self.device);
        };
        // As many of MSI as were granted; of MSI-X as many as it takes.
        let fits = |on: &(Interrupt, Vec<bool>)| {
            on.0 == kind && (kind == Interrupt::Msix || on.1.len() == routes.len())
        };
        if !wiring.on.as_ref().is_some_and(fits) {
            wiring.disconnect(&*self.device)?;
        }
        wiring.wire_vectors(&*self.device, kind, routes)
    }

    /// Before the device is reset: nothing is signalled, and what was is forgotten.
    pub(super) fn reset(&self) -> io::Result<()> {
        let disconnected = self.wiring().disconnect(&*self.device);
        self.handlers().for_each(CapabilityHandler::reset);
        disconnected
    }
}

impl Wiring {
    /// Lets the device signal nothing.
    fn disconnect(&mut self, device: &dyn VfioDevice) -> io::Result<()> {
        match self.on.take() {
            Some((kind, _)) => device.disconnect(kind),
            None => Ok(()),
        }
    }

    fn wire_pin(&mut self, device: &dyn VfioDevice) -> io::Result<()> {
        let is_pin = |on: &(Interrupt, Vec<bool>)| on.0 == Interrupt::Intx;
        if self.on.as_ref().is_some_and(is_pin) {
            return Ok(());
        }
        self.disconnect(device)?;
        if let Some((trigger, resample)) = &self.pin {
            device.connect(Interrupt::Intx, 0, &[Some(trigger)])?;
            device.resample(resample)?;
            self.on = Some((Interrupt::Intx, vec![true]));
        }
        Ok(())
    }

    /// Lets those of `routes` that are open be signalled, besides those that are already.
    fn wire_vectors(
        &mut self,
        device: &dyn VfioDevice,
        kind: Interrupt,
        routes: &[Arc<VectorRoute>],
    ) -> io::Result<()> {
        let open: Vec<bool> = routes.iter().map(|route| route.is_open()).collect();
        if let Some((_, wired)) = &mut self.on {
            let is_wired = |vector: &usize| wired.get(*vector).is_some_and(|&wired| wired);
            let news = (open.iter().enumerate()).filter(|(_, open)| **open);
            let news: Vec<usize> = (news.map(|(vector, _)| vector))
                .filter(|vector| !is_wired(vector))
                .collect();
            let Some(&last) = news.last() else {
                return Ok(());
            };
            if last < wired.len() || device.grows(kind) {
                for run in news.chunk_by(|before, next| before + 1 == *next) {
                    connect(device, kind, routes, run)?;
                    for &vector in run {
                        wired.resize(wired.len().max(vector + 1), false);
                        wired
                            .iter_mut()
                            .skip(vector)
                            .take(1)
                            .for_each(|on| *on = true);
                    }
                }
                return Ok(());
            }
        }
        // From the first on, with those that were wired before. A kind is on with one vector at least.
        let before = self.on.as_ref().map(|(_, wired)| wired.clone());
        self.disconnect(device)?;
        let was = |vector: usize| {
            let before = before.as_ref().and_then(|wired| wired.get(vector));
            before.is_some_and(|&wired| wired)
        };
        let mut wired: Vec<bool> = (open.iter().enumerate())
            .map(|(vector, open)| *open || was(vector))
            .collect();
        if kind == Interrupt::Msix {
            let used = wired.iter().rposition(|&wired| wired).unwrap_or(0) + 1;
            wired.truncate(used);
        }
        let eventfds: Vec<_> = (wired.iter().zip(routes))
            .map(|(wired, route)| wired.then(|| route.eventfd()))
            .collect();
        device.connect(kind, 0, &eventfds)?;
        self.on = Some((kind, wired));
        Ok(())
    }
}

/// Lets a run of vectors be signalled.
fn connect(
    device: &dyn VfioDevice,
    kind: Interrupt,
    routes: &[Arc<VectorRoute>],
    run: &[usize],
) -> io::Result<()> {
    let (Some(&first), Some(&last)) = (run.first(), run.last()) else {
        return Ok(());
    };
    let routes = routes.get(first..=last).unwrap_or_default();
    let eventfds: Vec<_> = routes.iter().map(|route| Some(route.eventfd())).collect();
    let first = u32::try_from(first).map_err(|_| io::ErrorKind::InvalidInput)?;
    device.connect(kind, first, &eventfds)
}

/// How many of `wanted` vectors of MSI the host has, a power of two: it can have fewer than the device.
fn available(device: &dyn VfioDevice, wanted: u8) -> u8 {
    let mut vectors = wanted;
    while vectors > 1 {
        let connected = device.connect(Interrupt::Msi, 0, &vec![None; vectors.into()]);
        if connected.is_ok() && device.disconnect(Interrupt::Msi).is_ok() {
            break;
        }
        vectors /= 2;
    }
    vectors
}
