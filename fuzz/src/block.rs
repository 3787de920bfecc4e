//! A guest that does anything to a virtio disk: registers of the PCI transport, rings and requests in memory, and snapshots.

use std::sync::Arc;

use pio_mmio_bus::bus::{AddressSpace, Bus, BusReader};
use pio_mmio_bus::interrupt::{RecordingLine, RecordingRouter};
use pio_mmio_bus::pci::{Decoder, InterruptPin, IntxLines, PciFunction, PortType, RequesterId};
use virtio_devices::Worker;
use virtio_devices::block::{Block, BlockOptions, MemoryDisk};
use virtio_devices::transport::{PciOptions, PciTransport};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where the guest has the BAR.
const BAR: u64 = 0xe000_0000;
/// Bytes of guest memory: little, so that guesses meet.
const MEMORY: usize = 0x8000;

struct Machine {
    memory: Arc<GuestMemoryMmap>,
    mmio: BusReader,
    transport: PciTransport<Arc<GuestMemoryMmap>>,
}

impl Machine {
    /// A disk whose driver is about to set up its queue.
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])?);
        let (pio, mmio) = (Bus::new(AddressSpace::Pio)?, Bus::new(AddressSpace::Mmio)?);
        let decoder = Decoder::new(pio, mmio.clone());
        let line = Arc::new(RecordingLine::default());
        let lines = IntxLines::new([0; 4].map(|_| Arc::clone(&line) as _));
        let disk = MemoryDisk::new(vec![0; 16 * 512], false);
        let options = BlockOptions {
            queue_size: 8,
            ..BlockOptions::default()
        };
        let block = Block::new(disk, vec![Worker::spawn("block")?], options)?;
        let transport = PciTransport::new(
            Arc::new(block),
            Arc::clone(&memory),
            &RecordingRouter::new(),
            lines.pin(1, InterruptPin::A),
            &decoder,
            PciOptions {
                port: PortType::IntegratedEndpoint,
                access_platform: false,
                sr_iov: false,
            },
        )?;
        let mut machine = Self {
            memory,
            mmio: mmio.reader(),
            transport,
        };
        let function = machine.transport.function();
        function.set_requester(RequesterId(8));
        function.write_config(0x10, &[0, 0, 0, 0xe0]);
        function.write_config(0x04, &[6, 0]);
        // ACKNOWLEDGE, DRIVER, the features VERSION_1 and RING_RESET, FEATURES_OK, the addresses of the ring.
        for (offset, bytes) in [
            (0x14, &[1][..]),
            (0x14, &[3]),
            (0x08, &[1, 0, 0, 0]),
            (0x0c, &[1, 1, 0, 0]),
            (0x14, &[11]),
            (0x20, &[0, 0x10, 0, 0]),
            (0x28, &[0, 0x11, 0, 0]),
            (0x30, &[0, 0x12, 0, 0]),
        ] {
            machine.write(offset, bytes);
        }
        Ok(machine)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        drop(self.mmio.write(BAR + offset, bytes));
    }

    /// One step, chosen and filled by 16 bytes.
    fn step(&mut self, step: [u8; 16]) {
        let [choice, width, a, b, value @ ..] = step;
        let width = usize::from(width % 8) + 1;
        let at = u64::from(u16::from_le_bytes([a, b]));
        let mut buffer = value;
        let data = buffer.get_mut(..width).unwrap_or_default();
        match choice % 10 {
            0 => self.write(at % 0x4000, data),
            1 => drop(self.mmio.read(BAR + at % 0x4000, data)),
            // The common configuration.
            2 => self.write(at % 0x40, data),
            // Enable the queue, DRIVER_OK.
            3 => {
                self.write(0x1c, &[1, 0]);
                self.write(0x14, &[15]);
            }
            // The doorbell.
            4 => self.write(0x3000, data),
            5 => self
                .transport
                .function()
                .write_config(u16::from_le_bytes([a, b]) % 0x100, data),
            6 => {
                let state = self.transport.save();
                let restored = self.transport.restore(&state);
                debug_assert!(restored.is_ok(), "{restored:?}");
                self.transport.resume();
            }
            // Rings and descriptors.
            7 => self.store(0x1000 + at % 0x300, &value),
            // Requests, and anything.
            8 => self.store(at % 0x1000, &value),
            _ => self.store(at, &value),
        }
    }

    fn store(&self, at: u64, bytes: &[u8]) {
        // Beyond the end there is nothing to store to.
        let _ = self.memory.write_slice(bytes, GuestAddress(at));
    }
}

/// Runs `data` as a guest, 16 bytes a step; what it may not do is panic or hang. After a reset the function is as new.
pub fn block(data: &[u8]) {
    let Ok(mut machine) = Machine::new() else {
        return;
    };
    for step in data.as_chunks().0 {
        machine.step(*step);
    }
    machine.transport.function().reset();
    let state = machine.transport.save();
    assert_eq!(state.transport.status, 0, "a reset did not reset");
    assert!(
        state
            .transport
            .queues
            .iter()
            .all(|queue| !queue.enabled && queue.ring.is_none()),
        "a queue outlived the reset"
    );
}
