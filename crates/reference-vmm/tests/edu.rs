//! The `edu` device: as a driver sees it, behind an IOMMU, and beside QEMU's.
#![expect(clippy::unwrap_used, reason = "test code")]

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use iommu_emul::domain::{DomainConfig, Domains, Mapping};
use pio_mmio_bus::bus::{AddressSpace, Bus, BusReader};
use pio_mmio_bus::interrupt::{MsiMessage, RecordingLine, RecordingRouter};
use pio_mmio_bus::pci::{ConfigSpace, Decoder, InterruptPin, IntxLines, PciFunction, RequesterId};
use qtest::{Qemu, if_installed};
use reference_vmm::devices::edu::{Edu, spec};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};

type Memory = Arc<GuestMemoryMmap>;

const BAR: u64 = 0xe000_0000;
const MEMORY: usize = 1 << 20;
/// Where the MSI capability is.
const MSI: u16 = 0x40;

struct Guest {
    function: Arc<ConfigSpace>,
    mmio: BusReader,
    line: Arc<RecordingLine>,
    router: RecordingRouter,
    memory: Memory,
}

fn memory() -> Memory {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap())
}

fn guest_with<A: GuestAddressSpace + Send + Sync + 'static>(view: A, memory: Memory) -> Guest {
    let (pio, mmio) = (
        Bus::new(AddressSpace::Pio).unwrap(),
        Bus::new(AddressSpace::Mmio).unwrap(),
    );
    let line = Arc::new(RecordingLine::default());
    let lines = IntxLines::new([0; 4].map(|_| Arc::clone(&line) as _));
    let router = RecordingRouter::new();
    let function = Edu::function(
        view,
        &router,
        lines.pin(4, InterruptPin::A),
        &Decoder::new(pio, mmio.clone()),
        spec::DMA_MASK,
    )
    .unwrap();
    function.set_requester(RequesterId(0x20));
    function.write_config(0x10, &u32::try_from(BAR).unwrap().to_le_bytes());
    // Memory space, bus master.
    function.write_config(0x04, &[6, 0]);
    Guest {
        function,
        mmio: mmio.reader(),
        line,
        router,
        memory,
    }
}

fn guest() -> Guest {
    let memory = memory();
    guest_with(Arc::clone(&memory), memory)
}

impl Guest {
    fn read(&mut self, offset: u64) -> u32 {
        let mut data = [0; 4];
        let _ = self.mmio.read(BAR + offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn read64(&mut self, offset: u64) -> u64 {
        let mut data = [0; 8];
        let _ = self.mmio.read(BAR + offset, &mut data);
        u64::from_le_bytes(data)
    }

    fn write(&mut self, offset: u64, value: u32) {
        let _ = self.mmio.write(BAR + offset, &value.to_le_bytes());
    }

    fn write64(&mut self, offset: u64, value: u64) {
        let _ = self.mmio.write(BAR + offset, &value.to_le_bytes());
    }

    fn transfer(&mut self, source: u64, destination: u64, count: u64, command: u64) {
        self.write64(spec::DMA_SOURCE, source);
        self.write64(spec::DMA_DESTINATION, destination);
        self.write64(spec::DMA_COUNT, count);
        self.write64(spec::DMA_COMMAND, command | spec::DMA_RUN);
    }

    fn load(&self, at: u64) -> [u8; 8] {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }
}

#[test]
fn a_driver_finds_it_alive() {
    let mut guest = guest();
    let mut ids = [0; 4];
    guest.function.read_config(0, &mut ids);
    assert_eq!(u32::from_le_bytes(ids), 0x11e8_1234);
    assert_eq!(guest.read(spec::ID), 0x0100_00ed);
    guest.write(spec::LIVENESS, 0x1234_5678);
    assert_eq!(guest.read(spec::LIVENESS), !0x1234_5678);
    guest.write(spec::ID, 0);
    assert_eq!(guest.read(spec::ID), 0x0100_00ed);
}

#[test]
fn factorials_are_modulo_2_to_the_32() {
    let mut guest = guest();
    for (number, factorial) in [
        (0, 1),
        (1, 1),
        (5, 120),
        (12, 479_001_600),
        (13, 1_932_053_504),
    ] {
        guest.write(spec::FACTORIAL, number);
        assert_eq!(guest.read(spec::FACTORIAL), factorial);
    }
    // As many factors as the guest likes cost no more than 34.
    guest.write(spec::FACTORIAL, 33);
    assert_ne!(guest.read(spec::FACTORIAL), 0);
    for number in [34, 35, u32::MAX] {
        guest.write(spec::FACTORIAL, number);
        assert_eq!(guest.read(spec::FACTORIAL), 0);
    }
}

#[test]
fn interrupts_are_levels_on_the_pin_and_messages_with_msi() {
    let mut guest = guest();
    guest.write(spec::FACTORIAL, 3);
    assert!(!guest.line.asserted());
    guest.write(spec::STATUS, u32::MAX);
    assert_eq!(guest.read(spec::STATUS), spec::FACTORIAL_INTERRUPT);
    guest.write(spec::FACTORIAL, 3);
    assert!(guest.line.asserted());
    guest.write(spec::INTERRUPT_RAISE, 0xf0);
    assert_eq!(guest.read(spec::INTERRUPT_STATUS), 0xf1);
    guest.write(spec::INTERRUPT_ACKNOWLEDGE, 0xf0);
    assert!(guest.line.asserted());
    guest.write(spec::INTERRUPT_ACKNOWLEDGE, 1);
    assert!(!guest.line.asserted());
    assert_eq!(guest.router.take(), []);
    // Address, data, enable.
    for (offset, value) in [(4, 0xfee0_0000_u32), (8, 0), (12, 0x41)] {
        guest
            .function
            .write_config(MSI + offset, &value.to_le_bytes());
    }
    guest.function.write_config(MSI + 2, &[1, 0]);
    guest.write(spec::INTERRUPT_RAISE, 2);
    let message = MsiMessage {
        requester: RequesterId(0x20),
        address: 0xfee0_0000,
        data: 0x41,
    };
    assert_eq!(guest.router.take(), [message]);
    assert!(!guest.line.asserted());
}

#[test]
fn dma_goes_through_the_buffer() {
    let mut guest = guest();
    guest
        .memory
        .write_slice(b"teaching", GuestAddress(0x5000))
        .unwrap();
    guest.transfer(0x5000, spec::BUFFER + 0xff8, 8, 0);
    assert_eq!(guest.read64(spec::DMA_COMMAND), 0);
    assert_eq!(guest.read(spec::INTERRUPT_STATUS), 0);
    let command = spec::DMA_TO_MEMORY | spec::DMA_INTERRUPT;
    guest.transfer(spec::BUFFER + 0xff8, 0x9000, 8, command);
    assert_eq!(guest.read64(spec::DMA_COMMAND), command);
    assert_eq!(&guest.load(0x9000), b"teaching");
    assert_eq!(guest.read(spec::INTERRUPT_STATUS), spec::DMA_DONE);
    // Addresses have 28 bits.
    guest.transfer(spec::BUFFER + 0xff8, 0x7_1000_a000, 8, command);
    assert_eq!(&guest.load(0xa000), b"teaching");
}

/// THREATS "address + length overflow; range crosses a region's end".
#[test]
fn a_transfer_that_does_not_fit_moves_nothing() {
    let mut guest = guest();
    guest
        .memory
        .write_slice(&[0xff; 16], GuestAddress(0x5000))
        .unwrap();
    let buffer = spec::BUFFER;
    for (inside, count) in [
        (buffer - 1, 1),
        (buffer, 4097),
        (buffer + 4095, 2),
        (buffer + 4096, 1),
        (0, 8),
        (u64::MAX, 8),
        (buffer, u64::MAX),
        (buffer + 1, u64::MAX - buffer),
        (u64::MAX, u64::MAX),
    ] {
        guest.transfer(inside, 0x6000, count, spec::DMA_TO_MEMORY);
        guest.transfer(0x5000, inside, count, 0);
        assert_eq!(guest.read64(spec::DMA_COMMAND), 0);
    }
    // Nor does one beyond memory, or without bus mastering.
    guest.transfer(MEMORY as u64 - 4, buffer, 8, 0);
    guest.transfer(buffer, MEMORY as u64 - 4, 8, spec::DMA_TO_MEMORY);
    guest.function.write_config(0x04, &[2, 0]);
    guest.transfer(0x5000, buffer + 8, 8, 0);
    guest.function.write_config(0x04, &[6, 0]);
    guest.transfer(buffer + 8, 0x6000, 8, spec::DMA_TO_MEMORY);
    assert_eq!(guest.load(0x6000), [0; 8]);
}

#[test]
fn it_does_not_know_whether_an_iommu_stands_before_it() {
    let memory = memory();
    let config = DomainConfig {
        bypass: false,
        ..DomainConfig::default()
    };
    let domains = Domains::new(config, Arc::clone(&memory));
    let requester = RequesterId(0x20);
    let mut guest = guest_with(domains.view(requester), memory);
    domains.attach(1, requester, false).unwrap();
    let mapping = Mapping {
        first: 0x1000,
        last: 0x1fff,
        physical: 0x8000,
        read: true,
        write: false,
    };
    domains.map(1, mapping).unwrap();
    guest
        .memory
        .write_slice(b"through!", GuestAddress(0x8010))
        .unwrap();
    guest.transfer(0x1010, spec::BUFFER, 8, 0);
    guest.transfer(spec::BUFFER, 0x1020, 8, spec::DMA_TO_MEMORY);
    assert_eq!(guest.load(0x8020), [0; 8]);
    domains.attach(2, requester, true).unwrap();
    guest.transfer(spec::BUFFER, 0x9000, 8, spec::DMA_TO_MEMORY);
    assert_eq!(&guest.load(0x9000), b"through!");
}

#[test]
fn it_behaves_as_qemus() {
    let Some(mut theirs) = if_installed(Qemu::halted("-device edu,addr=4")) else {
        return;
    };
    let mut ours = guest();
    theirs.configure(4, 0x10, u32::try_from(BAR).unwrap());
    theirs.configure(4, 0x04, 6);
    let mut numbers = fastrand::Rng::with_seed(7);
    let registers = [
        0, 4, 8, 0x20, 0x24, 0x60, 0x64, 0x80, 0x84, 0x88, 0x90, 0x98, 0xa0,
    ];
    for _ in 0..400 {
        let mut pick = |bound| numbers.u64(..bound);
        match pick(40) {
            // A transfer that fits: of another QEMU makes an end.
            kind @ (0 | 1) => {
                let count = pick(65);
                let inside = spec::BUFFER + pick(4096 - count);
                let outside = 0x1000 + pick(0x800) + (pick(4) << 28);
                let to_memory = kind == 1;
                let (source, destination) = if to_memory {
                    (inside, outside)
                } else {
                    (outside, inside)
                };
                let command = 1 | u64::from(to_memory) << 1 | pick(2) << 2;
                let at = 0x1000 + 8 * pick(0x100);
                let value = pick(u64::MAX);
                ours.memory.write_obj(value, GuestAddress(at)).unwrap();
                theirs.tell(&format!("writeq {at:#x} {value:#x}"));
                ours.transfer(source, destination, count, command);
                for (at, value) in [
                    (spec::DMA_SOURCE, source),
                    (spec::DMA_DESTINATION, destination),
                    (spec::DMA_COUNT, count),
                    (spec::DMA_COMMAND, command),
                ] {
                    theirs.tell(&format!("writeq {:#x} {value:#x}", BAR + at));
                }
                // It takes 100 ms there.
                let busy = format!("readq {:#x}", BAR + spec::DMA_COMMAND);
                while theirs.number(&busy) & spec::DMA_RUN != 0 {
                    thread::sleep(Duration::from_millis(5));
                }
            }
            2..10 => {
                let at = spec::DMA_SOURCE + 8 * pick(3);
                let value = pick(u64::MAX);
                ours.write64(at, value);
                theirs.tell(&format!("writeq {:#x} {value:#x}", BAR + at));
            }
            // Any register but the command.
            _ => {
                let number = usize::try_from(pick(11)).unwrap();
                let at = *registers.get(number).unwrap();
                let value = u32::try_from(pick(1 << 32)).unwrap();
                let factorial = at == spec::FACTORIAL;
                // QEMU computes a factorial factor by factor.
                let value = if factorial { value % 40 } else { value };
                let acknowledge = (spec::INTERRUPT_ACKNOWLEDGE, spec::FACTORIAL_DONE);
                for (at, value) in factorial
                    .then_some(acknowledge)
                    .into_iter()
                    .chain([(at, value)])
                {
                    ours.write(at, value);
                    theirs.tell(&format!("writel {:#x} {value:#x}", BAR + at));
                }
                // It does so on another thread, which raises the interrupt at last.
                while theirs.number(&format!("readl {:#x}", BAR + spec::STATUS)) & 1 != 0 {}
                let raised = u64::from(ours.read(spec::INTERRUPT_STATUS) & spec::FACTORIAL_DONE);
                let status = format!("readl {:#x}", BAR + spec::INTERRUPT_STATUS);
                while factorial && theirs.number(&status) & raised != raised {}
            }
        }
        for at in registers {
            let found = theirs.number(&format!("readl {:#x}", BAR + at));
            assert_eq!(u64::from(ours.read(at)), found, "{at:#x}");
        }
        for at in [0x80, 0x88, 0x90, 0x98] {
            let found = theirs.number(&format!("readq {:#x}", BAR + at));
            assert_eq!(ours.read64(at), found, "{at:#x}");
        }
        let at = 0x1000 + 8 * numbers.u64(..0x100);
        let found = theirs.number(&format!("readq {at:#x}"));
        assert_eq!(u64::from_le_bytes(ours.load(at)), found, "{at:#x}");
    }
}
