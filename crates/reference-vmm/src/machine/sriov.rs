//! Network cards with virtual functions: SR-IOV of our own.

use std::error::Error;
use std::sync::Arc;

use pio_mmio_bus::interrupt::MsiRouter;
use pio_mmio_bus::pci::{Decoder, PortType};
use sriov_vfio::emulated::{
    Layout, PhysicalError, PhysicalFunction, VfBarLayout, VfFactory, VfShare, VirtualFunction,
};
use virtio_devices::DmaView;
use virtio_devices::net::{MacAddress, Net, Tap};
use virtio_devices::transport::PciParts;

use super::board::Motherboard;
use super::devices::worker;
use super::virtio::Views;

/// The most virtual functions that a card can have: with it they fill its bus.
pub const MAX_VIRTUAL_NICS: u8 = u8::MAX;

/// What a virtual function of a network card is connected to. It outlives the function, which exists when the guest wants it.
#[derive(Clone, Debug)]
pub struct VirtualNic {
    /// The host's side.
    pub tap: Tap,
    /// The guest's address.
    pub mac: MacAddress,
}

/// A virtio network card, of these parts, that is a physical function with as many virtual ones as there are `nics`: cards like it, each
/// with a thread of its own. The guest finds them behind it, from function 1 on; those above 7 by ARI.
pub(super) fn physical_function<A: DmaView>(
    name: &str,
    parts: &PciParts<A>,
    nics: Vec<VirtualNic>,
    views: Views<A>,
    board: &Motherboard,
) -> Result<Arc<PhysicalFunction>, PhysicalError> {
    let decoder = board.root.decoder();
    let layout = Layout {
        total_vfs: u16::try_from(nics.len()).unwrap_or(u16::MAX),
        vf_device_id: parts.device_id(),
        bars: parts
            .bars()
            .map(|(index, bar)| VfBarLayout {
                index,
                kind: bar.kind,
                size: bar.size,
            })
            .into(),
        ..Layout::default()
    };
    let factory = VirtualNics {
        name: name.to_owned(),
        nics,
        views,
        router: board.controller.router().clone(),
        decoder: decoder.clone(),
    };
    PhysicalFunction::new(parts.endpoint(), layout, Box::new(factory), decoder)
}

/// Makes the virtual functions of a card.
struct VirtualNics<A> {
    name: String,
    nics: Vec<VirtualNic>,
    views: Views<A>,
    router: Arc<dyn MsiRouter>,
    decoder: Arc<Decoder>,
}

impl<A: DmaView> VfFactory for VirtualNics<A> {
    fn create(&self, index: u16) -> Result<VirtualFunction, Box<dyn Error + Send + Sync>> {
        let VirtualNic { tap, mac } = self
            .nics
            .get(usize::from(index))
            .ok_or("there is nothing to connect it to")?;
        let worker = worker(&format!("{}v{index}", self.name))?;
        let device = Arc::new(Net::new(tap.clone(), *mac, vec![worker])?);
        let parts = self
            .views
            .parts(device, &self.router, None, PortType::Endpoint, false)?;
        let function = parts.virtual_function().build(&self.decoder)?;
        let [(registers_bar, registers), (msix_bar, msix)] = parts.bars();
        let shares = vec![
            VfShare {
                bar: registers_bar,
                device: registers.device,
                doorbells: parts.doorbells(),
            },
            VfShare {
                bar: msix_bar,
                device: msix.device,
                doorbells: Vec::new(),
            },
        ];
        Ok(VirtualFunction { function, shares })
    }
}
