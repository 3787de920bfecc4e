//! A machine with both buses and a root complex, for the PCI tests.
#![allow(
    dead_code,
    reason = "each test uses what it needs of the shared machine"
)]
#![expect(clippy::unwrap_used, reason = "test code")]

use std::sync::{Arc, Mutex};

use pio_mmio_bus::bus::{AccessError, AddressSpace, Bus, BusDevice, BusReader};
use pio_mmio_bus::interrupt::{IrqLine, RecordingLine};
use pio_mmio_bus::pci::{
    Bar, BarKind, ConfigBuilder, ConfigSpace, Decoder, Identity, PciFunction, RequesterId,
    RootComplex,
};

/// Both buses, the decoder and the root complex on them.
pub struct Machine {
    pub pio: Bus,
    pub mmio: Bus,
    pub decoder: Arc<Decoder>,
    pub lines: [Arc<RecordingLine>; 4],
    pub root: Arc<RootComplex>,
}

impl Machine {
    pub fn new() -> Self {
        let pio = Bus::new(AddressSpace::Pio).unwrap();
        let mmio = Bus::new(AddressSpace::Mmio).unwrap();
        let decoder = Decoder::new(pio.clone(), mmio.clone());
        let lines: [Arc<RecordingLine>; 4] = Default::default();
        let root = RootComplex::new(
            Arc::clone(&decoder),
            lines.clone().map(|line| line as Arc<dyn IrqLine>),
        )
        .unwrap();
        Self {
            pio,
            mmio,
            decoder,
            lines,
            root,
        }
    }

    /// A function with these BARs, all with the same device.
    pub fn function(
        &self,
        bars: &[(usize, BarKind, u64)],
        device: Arc<dyn BusDevice>,
    ) -> Arc<ConfigSpace> {
        let mut builder = ConfigBuilder::endpoint(IDENTITY);
        for &(index, kind, size) in bars {
            builder = builder.bar(
                index,
                Bar {
                    kind,
                    size,
                    name: format!("BAR {index}"),
                    device: Arc::clone(&device),
                },
            );
        }
        builder.build(&self.decoder).unwrap()
    }

    pub fn read32(&self, id: RequesterId, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        self.root.read_config(id, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub fn write32(&self, id: RequesterId, offset: u16, value: u32) {
        self.root.write_config(id, offset, &value.to_le_bytes());
    }
}

pub const IDENTITY: Identity = Identity {
    vendor: 0x1af4,
    device: 0x1042,
    revision: 1,
    class: [0x01, 0x80, 0x00],
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// Answers every read with the offset's low byte plus its tag, and remembers where it was written.
#[derive(Default)]
pub struct Echo {
    pub tag: u8,
    pub written: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Echo {
    pub fn new(tag: u8) -> Arc<Self> {
        Arc::new(Self {
            tag,
            ..Self::default()
        })
    }
}

impl BusDevice for Echo {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(self.tag.wrapping_add(offset.to_le_bytes()[0]));
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.written.lock().unwrap().push((offset, data.to_vec()));
        Ok(())
    }
}

pub fn read32(function: &dyn PciFunction, offset: u16) -> u32 {
    let mut bytes = [0; 4];
    function.read_config(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

pub fn read16(function: &dyn PciFunction, offset: u16) -> u16 {
    let mut bytes = [0; 2];
    function.read_config(offset, &mut bytes);
    u16::from_le_bytes(bytes)
}

pub fn write32(function: &dyn PciFunction, offset: u16, value: u32) {
    function.write_config(offset, &value.to_le_bytes());
}

pub fn write16(function: &dyn PciFunction, offset: u16, value: u16) {
    function.write_config(offset, &value.to_le_bytes());
}

/// Reads a byte of a bus. `None` if nothing answers.
pub fn peek(reader: &mut BusReader, address: u64) -> Option<u8> {
    let mut byte = [0];
    let outcome = reader.read(address, &mut byte);
    matches!(outcome, pio_mmio_bus::bus::Outcome::Done).then_some(byte[0])
}

pub const COMMAND: u16 = 0x04;
pub const COMMAND_IO: u16 = 1;
pub const COMMAND_MEMORY: u16 = 2;
pub const COMMAND_BUS_MASTER: u16 = 4;
pub const BAR0: u16 = 0x10;
