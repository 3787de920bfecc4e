//! PCI functions on bus 0 that are no virtio devices.

use pio_mmio_bus::pci::{InterruptPin, RequesterId, RootError};
use virtio_devices::DmaView;

use super::MachineError;
use super::board::Motherboard;
use super::virtio::Views;
use crate::devices::edu::{self, Edu};

/// A device besides the virtio devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Emulated {
    /// A device to learn from, and to test an IOMMU with ([`edu`]).
    Edu,
}

/// Device number of the first of them; the others come before it. The virtio devices' numbers count up from 1.
const FIRST: u8 = 30;

impl Emulated {
    /// Puts the device, the `index`th of them, on the bus.
    pub(super) fn attach<A: DmaView>(
        self,
        index: u8,
        views: &Views<A>,
        board: &Motherboard,
    ) -> Result<(), MachineError> {
        let number = FIRST.saturating_sub(index);
        let devfn = RequesterId::devfn_of(number, 0);
        let memory = (views.view)(RequesterId::new(0, devfn));
        let pin = board.root.intx().pin(number, InterruptPin::A);
        let router = board.controller.router();
        let decoder = board.root.decoder();
        let function = match self {
            Self::Edu => Edu::function(memory, router, pin, decoder, edu::spec::DMA_MASK)?,
        };
        let bus = board.root.bus();
        bus.insert(devfn, function).map_err(RootError::from)?;
        Ok(())
    }
}
