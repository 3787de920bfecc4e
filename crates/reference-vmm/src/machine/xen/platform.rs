//! The PCI device by which guests find the hypervisor's devices, and the ports by which they put emulated ones away.

use std::sync::Arc;

use pio_mmio_bus::bus::{AccessError, BusDevice};
use pio_mmio_bus::pci::{
    Bar, BarKind, ConfigBuilder, Identity, InterruptPin, RequesterId, RootError,
};

use super::spec::platform::{BASE, DEVICE, IO_SIZE, MAGIC, MEMORY_SIZE, PROTOCOL, SIZE, VENDOR};
use crate::machine::MachineError;
use crate::machine::board::Motherboard;

/// Device number, above those of others.
const NUMBER: u8 = 31;

/// The ports. A device given as one of Xen's has no emulated twin, so there is nothing to unplug, and what drivers tell of themselves is
/// of no consequence.
struct UnplugPorts;

impl BusDevice for UnplugPorts {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let [low, high] = MAGIC.to_le_bytes();
        match (offset, data) {
            (0, [a, b]) => (*a, *b) = (low, high),
            (2, [version]) => *version = PROTOCOL,
            (_, data) => {
                let width = data.len();
                return Err(AccessError::Width { offset, width });
            }
        }
        Ok(())
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), AccessError> {
        Ok(())
    }
}

/// The BARs: nothing answers but the pages that the guest shows itself there.
struct Vacant;

impl BusDevice for Vacant {
    fn read(&self, offset: u64, _data: &mut [u8]) -> Result<(), AccessError> {
        Err(AccessError::NoRegister { offset })
    }

    fn write(&self, offset: u64, _data: &[u8]) -> Result<(), AccessError> {
        Err(AccessError::NoRegister { offset })
    }
}

/// Puts both on the board.
pub(super) fn attach(board: &Motherboard) -> Result<(), MachineError> {
    board
        .pio
        .insert(BASE, SIZE, "Xen's unplug ports", Arc::new(UnplugPorts))?;
    let identity = Identity {
        vendor: VENDOR,
        device: DEVICE,
        revision: 1,
        class: [0xff, 0x80, 0x00],
        subsystem_vendor: VENDOR,
        subsystem: DEVICE,
    };
    let bar = |kind, size, name: &str| Bar {
        kind,
        size,
        name: name.to_owned(),
        device: Arc::new(Vacant),
    };
    let prefetchable = BarKind::Memory32 { prefetchable: true };
    let function = ConfigBuilder::endpoint(identity)
        .bar(0, bar(BarKind::Io, IO_SIZE, "Xen platform ports"))
        .bar(1, bar(prefetchable, MEMORY_SIZE, "Xen platform memory"))
        .interrupt(board.root.intx().pin(NUMBER, InterruptPin::A))
        .build(board.root.decoder())
        .map_err(RootError::from);
    let devfn = RequesterId::devfn_of(NUMBER, 0);
    let bus = board.root.bus();
    bus.insert(devfn, function?).map_err(RootError::from)?;
    Ok(())
}
