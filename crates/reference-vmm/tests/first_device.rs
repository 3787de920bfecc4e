//! The guest of the book's page "Your first device".

use reference_vmm::devices::edu;

// ANCHOR: guest
use std::error::Error;
use std::sync::Arc;

use edu::{Edu, spec};
use pio_mmio_bus::bus::{AddressSpace, Bus, BusReader, Outcome};
use pio_mmio_bus::interrupt::{RecordingLine, RecordingRouter};
use pio_mmio_bus::pci::{Decoder, InterruptPin, IntxLines, PciFunction};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where firmware puts BAR 0.
const BAR: u64 = 0xe000_0000;

/// What a vCPU does when the driver writes a register.
fn write(vcpu: &mut BusReader, register: u64, bytes: &[u8]) {
    assert_eq!(vcpu.write(BAR + register, bytes), Outcome::Done);
}

#[test]
fn a_driver() -> Result<(), Box<dyn Error>> {
    // The machine: memory, two buses, interrupt lines, and the device.
    let memory: Arc<GuestMemoryMmap> =
        Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
    let (pio, mmio) = (Bus::new(AddressSpace::Pio)?, Bus::new(AddressSpace::Mmio)?);
    let line = Arc::new(RecordingLine::default());
    let lines = IntxLines::new([0; 4].map(|_| Arc::clone(&line) as _));
    let device = Edu::function(
        Arc::clone(&memory),
        &RecordingRouter::new(),
        lines.pin(1, InterruptPin::A),
        &Decoder::new(pio, mmio.clone()),
        spec::DMA_MASK,
    )?;

    // Firmware: an address for BAR 0; memory space and bus mastering on.
    device.write_config(0x10, &[0, 0, 0, 0xe0]);
    device.write_config(0x04, &[6, 0]);

    // The driver: a factorial, and its interrupt.
    let vcpu = &mut mmio.reader();
    write(vcpu, spec::STATUS, &spec::FACTORIAL_INTERRUPT.to_le_bytes());
    write(vcpu, spec::FACTORIAL, &5_u32.to_le_bytes());
    let mut number = [0; 4];
    assert_eq!(vcpu.read(BAR + spec::FACTORIAL, &mut number), Outcome::Done);
    assert_eq!(u32::from_le_bytes(number), 120);
    assert!(line.asserted());
    let done = spec::FACTORIAL_DONE.to_le_bytes();
    write(vcpu, spec::INTERRUPT_ACKNOWLEDGE, &done);
    assert!(!line.asserted());

    // Memory to the buffer, and from there to other memory.
    memory.write_slice(b"hello", GuestAddress(0x1000))?;
    for (source, destination, direction) in [
        (0x1000, spec::BUFFER, 0),
        (spec::BUFFER, 0x2000, spec::DMA_TO_MEMORY),
    ] {
        for (register, value) in [
            (spec::DMA_SOURCE, source),
            (spec::DMA_DESTINATION, destination),
            (spec::DMA_COUNT, 5),
            (spec::DMA_COMMAND, spec::DMA_RUN | direction),
        ] {
            write(vcpu, register, &value.to_le_bytes());
        }
    }
    let mut copy = [0; 5];
    memory.read_slice(&mut copy, GuestAddress(0x2000))?;
    assert_eq!(&copy, b"hello");
    Ok(())
}
// ANCHOR_END: guest
