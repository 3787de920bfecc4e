//! A PCI transport on a bus, with its BARs placed as firmware would.

use std::cell::RefCell;
use std::sync::Arc;

use pio_mmio_bus::bus::{AddressSpace, Bus, BusReader, Outcome};
use pio_mmio_bus::interrupt::{RecordingLine, RecordingRouter};
use pio_mmio_bus::pci::{Decoder, InterruptPin, IntxLines, PciFunction, PortType, RequesterId};
use virtio_devices::VirtioDevice;
use virtio_devices::transport::{PciOptions, PciTransport};

use super::Memory;

pub struct Rig {
    pub transport: PciTransport<Memory>,
    pub router: Arc<RecordingRouter>,
    reader: RefCell<BusReader>,
}

impl Rig {
    pub const BAR: u64 = 0xe000_0000;
    pub const MSIX: u64 = 0xe010_0000;
    pub const ISR: u64 = 0x1000;
    pub const DEVICE: u64 = 0x2000;
    pub const NOTIFY: u64 = 0x3000;

    pub fn new(
        device: Arc<dyn VirtioDevice<Memory>>,
        memory: Memory,
        line: Arc<RecordingLine>,
    ) -> Self {
        let mmio = Bus::new(AddressSpace::Mmio).unwrap();
        let decoder = Decoder::new(Bus::new(AddressSpace::Pio).unwrap(), mmio.clone());
        let lines = [0; 4].map(|_| Arc::clone(&line) as Arc<_>);
        let pin = IntxLines::new(lines).pin(1, InterruptPin::A);
        let router = Arc::new(RecordingRouter::new());
        let options = PciOptions {
            port: PortType::Endpoint,
            access_platform: false,
            sr_iov: false,
        };
        let transport =
            PciTransport::new(device, memory, &*router, pin, &decoder, options).unwrap();
        let rig = Self {
            transport,
            router,
            reader: RefCell::new(mmio.reader()),
        };
        rig.place();
        rig
    }

    /// Places the BARs and enables decoding and bus mastering.
    pub fn place(&self) {
        let function = self.transport.function();
        function.set_requester(RequesterId(0x0008));
        function.write_config(0x10, &u32::try_from(Self::BAR).unwrap().to_le_bytes());
        function.write_config(0x18, &u32::try_from(Self::MSIX).unwrap().to_le_bytes());
        function.write_config(0x04, &6_u16.to_le_bytes());
    }

    /// Reads the BAR of the virtio structures; all ones where there is nothing.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let _ = self.reader.borrow_mut().read(Self::BAR + offset, data);
    }

    pub fn write(&self, offset: u64, data: &[u8]) {
        let _ = self.reader.borrow_mut().write(Self::BAR + offset, data);
    }

    pub fn try_write(&self, offset: u64, data: &[u8]) -> Outcome {
        self.reader.borrow_mut().write(Self::BAR + offset, data)
    }

    pub fn read_u16(&self, offset: u64) -> u16 {
        let mut data = [0; 2];
        self.read(offset, &mut data);
        u16::from_le_bytes(data)
    }

    pub fn config_u32(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.transport.function().read_config(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Lets the guest enable MSI-X with vector `v` sending data `v`.
    pub fn enable_msix(&self) {
        let vectors = u16::try_from(self.transport.save().msix.entries.len()).unwrap();
        for vector in 0..vectors {
            let entry = Self::MSIX + 16 * u64::from(vector);
            let mut reader = self.reader.borrow_mut();
            let _ = reader.write(entry, &0xfee0_0000_u32.to_le_bytes());
            let _ = reader.write(entry + 8, &u32::from(vector).to_le_bytes());
            let _ = reader.write(entry + 12, &0_u32.to_le_bytes());
        }
        // MSI-X is the first capability.
        let at = u16::try_from(self.config_u32(0x34) & 0xff).unwrap();
        self.transport
            .function()
            .write_config(at + 2, &0x8000_u16.to_le_bytes());
    }
}
