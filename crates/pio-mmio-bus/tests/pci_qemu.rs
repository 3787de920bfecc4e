//! Headers and BARs beside QEMU's: the same accesses to both, through ports 0xCF8 and 0xCFC.
#![expect(clippy::unwrap_used, reason = "test code")]

mod machine;

use machine::*;
use pio_mmio_bus::bus::BusDevice;
use pio_mmio_bus::pci::{BarKind, ConfigPorts, RequesterId, RootPort};
use qtest::{Qemu, if_installed};

/// Both sides of the comparison, at one device number.
struct Pair {
    ours: ConfigPorts,
    theirs: Qemu,
    device: u32,
}

impl Pair {
    fn select(&mut self, register: u8) {
        let address = 0x8000_0000 | self.device << 11 | u32::from(register & 0xfc);
        self.ours.write(0, &address.to_le_bytes()).unwrap();
        self.theirs.tell(&format!("outl 0xcf8 {address:#x}"));
    }

    fn write(&mut self, register: u8, data: &[u8]) {
        self.select(register);
        let offset = u64::from(register & 3);
        self.ours.write(4 + offset, data).unwrap();
        let (suffix, value) = match *data {
            [a] => ('b', u32::from(a)),
            [a, b] => ('w', u32::from(u16::from_le_bytes([a, b]))),
            _ => ('l', u32::from_le_bytes(data.try_into().unwrap())),
        };
        let port = 0xcfc + offset;
        self.theirs
            .tell(&format!("out{suffix} {port:#x} {value:#x}"));
    }

    /// Reads the same number of bytes from both, and compares them where `mask` says.
    fn compare(&mut self, register: u8, width: usize, mask: u64) {
        self.select(register);
        let offset = u64::from(register & 3);
        let mut data = [0; 8];
        let part = data.get_mut(..width).unwrap();
        self.ours.read(4 + offset, part).unwrap();
        let suffix = match width {
            1 => 'b',
            2 => 'w',
            _ => 'l',
        };
        let port = 0xcfc + offset;
        let theirs = self.theirs.number(&format!("in{suffix} {port:#x}"));
        let ours = u64::from_le_bytes(data);
        assert_eq!(
            ours & mask,
            theirs & mask,
            "{width} bytes at {register:#x}: {ours:#x} {theirs:#x}"
        );
    }
}

const DEVICE: u8 = 5;

#[test]
fn a_type_0_header_answers_as_qemus() {
    let Some(theirs) = if_installed(Qemu::stopped("-device pci-testdev,addr=5.0,membar=1M")) else {
        return;
    };
    let machine = Machine::new();
    let function = machine.function(
        &[
            (
                0,
                BarKind::Memory32 {
                    prefetchable: false,
                },
                0x1000,
            ),
            (1, BarKind::Io, 0x100),
            (2, BarKind::Memory64 { prefetchable: true }, 1 << 20),
        ],
        Echo::new(0),
    );
    machine
        .root
        .bus()
        .insert(RequesterId::devfn_of(DEVICE, 0), function)
        .unwrap();
    let mut pair = Pair {
        ours: ConfigPorts::new(&machine.root),
        theirs,
        device: DEVICE.into(),
    };
    let mut numbers = fastrand::Rng::with_seed(1);
    for _ in 0..600 {
        let width = 1 << numbers.u64(..3);
        let register = u8::try_from(numbers.u64(..0x40)).unwrap();
        // Neither crosses the data register.
        let register = register & !(u8::try_from(width).unwrap() - 1);
        let value = match numbers.u64(..3) {
            0 => u64::MAX,
            _ => numbers.u64(..),
        };
        pair.write(register, value.to_le_bytes().get(..width).unwrap());
        for register in (0x04..0x40).step_by(4) {
            let mask = match register {
                // Ours has a parity bit in the command register, which QEMU leaves at 0.
                0x04 => 0xffff_ffbf,
                // Revision and class are another device's.
                0x08 => 0,
                _ => u64::MAX,
            };
            pair.compare(register, 4, mask);
        }
        pair.compare(register, width, if register < 0x0c { 0 } else { u64::MAX });
    }
}

#[test]
fn a_root_port_answers_as_qemus() {
    let Some(theirs) = if_installed(Qemu::stopped("-device pcie-root-port,addr=5.0,chassis=1"))
    else {
        return;
    };
    let machine = Machine::new();
    let _port = RootPort::new(&machine.root, DEVICE).unwrap();
    let mut pair = Pair {
        ours: ConfigPorts::new(&machine.root),
        theirs,
        device: DEVICE.into(),
    };
    pair.compare(0x00, 4, u64::MAX);
    pair.compare(0x08, 4, u64::MAX);
    let mut numbers = fastrand::Rng::with_seed(2);
    for _ in 0..600 {
        let width = 1 << numbers.u64(..3);
        let register = 0x18 + u8::try_from(numbers.u64(..0x28)).unwrap();
        let register = register & !(u8::try_from(width).unwrap() - 1);
        pair.write(
            register,
            numbers.u64(..).to_le_bytes().get(..width).unwrap(),
        );
        for (register, mask) in [
            (0x18, u64::MAX),
            // Ours has an I/O window of 32 bits.
            (0x1c, 0xffff_f0f0),
            (0x20, u64::MAX),
            (0x24, u64::MAX),
            (0x28, u64::MAX),
            (0x2c, u64::MAX),
            (0x38, u64::MAX),
            // Ours has no interrupt pin.
            (0x3c, 0xffff_00ff),
        ] {
            pair.compare(register, 4, mask);
        }
    }
}

/// Where a memory BAR answers after random writes to its register and the command register.
#[test]
fn a_bar_is_decoded_where_qemu_decodes_it() {
    let Some(theirs) = if_installed(Qemu::stopped("-device edu,addr=5.0")) else {
        return;
    };
    let machine = Machine::new();
    let kind = BarKind::Memory32 {
        prefetchable: false,
    };
    let function = machine.function(&[(0, kind, 1 << 20)], Echo::new(0xed));
    machine
        .root
        .bus()
        .insert(RequesterId::devfn_of(DEVICE, 0), function)
        .unwrap();
    let mut pair = Pair {
        ours: ConfigPorts::new(&machine.root),
        theirs,
        device: DEVICE.into(),
    };
    let mut mmio = machine.mmio.reader();
    let places = [0xd000_0000_u32, 0xd010_0000, 0xe1f0_0000, 0xf000_0000];
    let mut numbers = fastrand::Rng::with_seed(3);
    let mut decoded = 0;
    for _ in 0..1000 {
        let place = places
            .get(usize::try_from(numbers.u64(..4)).unwrap())
            .unwrap();
        match numbers.u64(..5) {
            0 => pair.write(0x04, &[u8::try_from(numbers.u64(..8)).unwrap()]),
            1 => pair.write(0x04, &6_u16.to_le_bytes()),
            2 => pair.write(0x12, &place.to_le_bytes()[2..]),
            _ => pair.write(0x10, &place.to_le_bytes()),
        }
        for place in places {
            let theirs = pair.theirs.number(&format!("readl {place:#x}")) == 0x0100_00ed;
            let ours = peek(&mut mmio, place.into()).is_some();
            assert_eq!(ours, theirs, "{place:#x}");
            decoded += usize::from(ours);
        }
    }
    assert!(decoded > 300, "{decoded}");
}
