use std::io;
use std::sync::Arc;

use pio_mmio_bus::interrupt::{MsiRoute, MsiRouter};
use pio_mmio_bus::pci::spec::{msi, msix};
use pio_mmio_bus::pci::{CapabilityHandler, Msi, Msix, MsixState, RequesterId, VectorsError};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::config::{MsiPlace, MsixPlace, VirtualConfig};
use super::device::{Interrupt, VfioDevice};
use super::migration::MigrationError;

/// How a function interrupts. The device signals eventfds of one kind at a time: MSI-X if the guest enabled it, else MSI, else the pin.
pub(super) struct Interrupts {
    msix: Option<(MsixPlace, Arc<Msix>)>,
    msi: Option<(MsiPlace, Arc<Msi>)>,
    /// What the pin signals, and what unmasks it.
    pin: Option<(EventFd, EventFd)>,
    /// What the device signals, and how many of them.
    connected: Option<(Interrupt, usize)>,
}

impl Interrupts {
    /// Vectors with routes of `router` for what `config` shows. Of MSI's vectors it shows fewer from now on if the host has fewer.
    pub(super) fn new(
        device: &dyn VfioDevice,
        config: &mut VirtualConfig,
        router: &dyn MsiRouter,
    ) -> Result<Self, VectorsError> {
        let msix = match config.msix() {
            Some(place) => Some((place, Msix::new(place.vectors, router)?)),
            None => None,
        };
        let msi = match config.msi() {
            Some(place) => {
                let vectors = available(device, place.vectors);
                config.limit_msi(vectors);
                Some((place, Msi::new(vectors, router)?))
            }
            None => None,
        };
        Ok(Self {
            msix,
            msi,
            pin: None,
            connected: None,
        })
    }

    pub(super) fn msix(&self) -> Option<&(MsixPlace, Arc<Msix>)> {
        self.msix.as_ref()
    }

    fn handlers(&self) -> impl Iterator<Item = &dyn CapabilityHandler> {
        let msix = self.msix.iter().map(|(_, msix)| &**msix as _);
        msix.chain(self.msi.iter().map(|(_, msi)| &**msi as _))
    }

    pub(super) fn set_requester(&self, requester: RequesterId) {
        self.handlers()
            .for_each(|handler| handler.set_requester(requester));
    }

    pub(super) fn set_pin(&mut self, pin: (EventFd, EventFd)) {
        self.pin = Some(pin);
    }

    /// MSI-X's table and pending bits, and MSI's pending bits.
    pub(super) fn save(&self) -> (Option<MsixState>, Option<u32>) {
        let msix = self.msix.as_ref().map(|(_, msix)| msix.save());
        let msi = self.msi.as_ref().map(|(_, msi)| msi.save_pending());
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
        if let (Some((_, own)), Some(saved)) = (&self.msix, msix) {
            own.restore(saved)?;
        }
        if let (Some((_, own)), Some(saved)) = (&self.msi, msi) {
            own.restore_pending(saved);
        }
        Ok(())
    }

    /// Lets `config` show the pending bits of MSI.
    pub(super) fn refresh(&self, config: &mut VirtualConfig) {
        if let Some((place, msi)) = &self.msi
            && let Some(offset) = place.pending()
        {
            let mut registers = [0; msi::LENGTH];
            msi.refresh(&mut registers, msi::PENDING..msi::LENGTH);
            config.keep(offset, registers.get(msi::PENDING..).unwrap_or_default());
        }
    }

    /// Lets the registers take effect.
    pub(super) fn apply(
        &mut self,
        device: &dyn VfioDevice,
        config: &VirtualConfig,
        bus_master: bool,
    ) -> io::Result<()> {
        if let Some((place, msix)) = &self.msix {
            let registers = config.kept(place.capability..place.capability + msix::LENGTH);
            msix.written(registers, 0..registers.len());
        }
        if let Some((place, msi)) = &self.msi {
            msi.written(&place.registers(config), 0..msi::LENGTH);
        }
        self.handlers()
            .for_each(|handler| handler.set_bus_master(bus_master));
        self.connect(device)
    }

    /// Brings what the device signals in line with what the guest enabled.
    fn connect(&mut self, device: &dyn VfioDevice) -> io::Result<()> {
        let (interrupt, routes) = self.enabled();
        let wanted = match (&routes[..], &self.pin) {
            ([], None) => None,
            ([], Some(_)) => Some((Interrupt::Intx, 1)),
            _ => Some((interrupt, routes.len())),
        };
        if wanted == self.connected {
            return Ok(());
        }
        self.disconnect(device)?;
        if !routes.is_empty() {
            let eventfds: Vec<_> = routes.iter().map(|route| route.eventfd()).collect();
            device.connect(interrupt, &eventfds)?;
        } else if let Some((trigger, resample)) = &self.pin {
            device.connect(Interrupt::Intx, &[trigger])?;
            device.resample(resample)?;
        }
        self.connected = wanted;
        Ok(())
    }

    /// The vectors that the guest enabled.
    fn enabled(&self) -> (Interrupt, Vec<Arc<dyn MsiRoute>>) {
        if let Some((_, msix)) = &self.msix
            && msix.enabled()
        {
            let routes = (0..msix.vectors()).filter_map(|vector| msix.route(vector));
            return (Interrupt::Msix, routes.collect());
        }
        let routes = self.msi.iter().flat_map(|(_, msi)| {
            let routes = (0..msi.granted()).filter_map(|vector| msi.route(vector));
            routes.collect::<Vec<_>>()
        });
        (Interrupt::Msi, routes.collect())
    }

    /// Lets the device signal nothing.
    fn disconnect(&mut self, device: &dyn VfioDevice) -> io::Result<()> {
        match self.connected.take() {
            Some((interrupt, _)) => device.connect(interrupt, &[]),
            None => Ok(()),
        }
    }

    /// Before the device is reset: nothing is signalled, and what was is forgotten.
    pub(super) fn reset(&mut self, device: &dyn VfioDevice) -> io::Result<()> {
        let disconnected = self.disconnect(device);
        self.handlers().for_each(CapabilityHandler::reset);
        disconnected
    }
}

/// How many of `wanted` vectors of MSI the host has, a power of two: it can have fewer than the device.
fn available(device: &dyn VfioDevice, wanted: u8) -> u8 {
    let mut vectors = wanted;
    while vectors > 1 {
        let eventfds: Vec<_> = (0..vectors)
            .filter_map(|_| EventFd::new(EFD_NONBLOCK).ok())
            .collect();
        let connected = device.connect(Interrupt::Msi, &eventfds.iter().collect::<Vec<_>>());
        if connected.is_ok() && device.connect(Interrupt::Msi, &[]).is_ok() {
            break;
        }
        vectors /= 2;
    }
    vectors
}
