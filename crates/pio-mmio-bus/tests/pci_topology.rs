//! Buses, bridges and identities: what a guest finds when it enumerates, and what happens when it renumbers.
#![expect(clippy::unwrap_used, reason = "test code")]

mod machine;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use machine::*;
use pio_mmio_bus::bus::{AccessError, BusDevice};
use pio_mmio_bus::interrupt::IrqLine;
use pio_mmio_bus::pci::{
    BarKind, Capability, ConfigBuilder, ConfigPorts, ConfigSpace, Ecam, InterruptPin, PciFunction,
    PortType, RequesterId, RootPort, TopologyError,
};

fn endpoint(machine: &Machine) -> Arc<ConfigSpace> {
    ConfigBuilder::endpoint(IDENTITY)
        .capability(Capability::express(PortType::Endpoint))
        .build(&machine.decoder)
        .unwrap()
}

/// A machine with an endpoint at 00:03.0 and one behind each of two ports, 00:04.0 and 00:05.0.
fn machine() -> (Machine, [Arc<RootPort>; 2], [Arc<ConfigSpace>; 3]) {
    let machine = Machine::new();
    let functions = [endpoint(&machine), endpoint(&machine), endpoint(&machine)];
    let [direct, first, second] = functions.clone();
    machine.root.bus().insert(3 << 3, direct).unwrap();
    let ports = [4, 5].map(|device| RootPort::new(&machine.root, device).unwrap());
    ports[0].bus().insert(0, first).unwrap();
    ports[1].bus().insert(0, second).unwrap();
    (machine, ports, functions)
}

const PORT: RequesterId = RequesterId::new(0, 4 << 3);
const OTHER_PORT: RequesterId = RequesterId::new(0, 5 << 3);
const PRESENT: u32 = 0x1042_1af4;

/// Scans a bus as an operating system does, numbering bridges depth first from `next`. Returns what it found.
fn scan(machine: &Machine, bus: u8, next: &mut u8) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    for device in 0..32 {
        for function in 0..8 {
            let id = RequesterId::new(bus, RequesterId::devfn_of(device, function));
            let vendor = machine.read32(id, 0);
            if vendor == u32::MAX {
                if function == 0 {
                    break;
                }
                continue;
            }
            found.push((id.to_string(), vendor));
            let header = machine.read32(id, 0x0c) >> 16 & 0xff;
            if header & 0x7f == 1 {
                let secondary = *next;
                *next += 1;
                machine.write32(
                    id,
                    0x18,
                    u32::from(bus) | u32::from(secondary) << 8 | 0xff_0000,
                );
                found.extend(scan(machine, secondary, next));
                let subordinate = u32::from(*next - 1) << 16;
                machine.write32(
                    id,
                    0x18,
                    u32::from(bus) | u32::from(secondary) << 8 | subordinate,
                );
            }
            if function == 0 && header & 0x80 == 0 {
                break;
            }
        }
    }
    found
}

#[test]
fn enumeration_finds_everything() {
    let (machine, _ports, [direct, first, second]) = machine();
    for (function, bridge) in [(0, true), (3, false), (7, false)] {
        let mut builder = ConfigBuilder::endpoint(IDENTITY);
        if bridge {
            builder = builder.multi_function();
        }
        let function_of_many = builder.build(&machine.decoder).unwrap();
        machine
            .root
            .bus()
            .insert(0x1f << 3 | function, function_of_many)
            .unwrap();
    }
    let found = scan(&machine, 0, &mut 1);
    let expected = [
        ("00:00.0", 0x0008_1b36),
        ("00:03.0", PRESENT),
        ("00:04.0", 0x000c_1b36),
        ("01:00.0", PRESENT),
        ("00:05.0", 0x000c_1b36),
        ("02:00.0", PRESENT),
        ("00:1f.0", PRESENT),
        ("00:1f.3", PRESENT),
        ("00:1f.7", PRESENT),
    ];
    assert_eq!(found, expected.map(|(id, vendor)| (id.to_string(), vendor)));
    let ids = [direct, first, second].map(|function| function.requester().to_string());
    assert_eq!(ids, ["00:03.0", "01:00.0", "02:00.0"]);
}

#[test]
fn requester_ids_follow_bus_numbers() {
    let (machine, _ports, [_, first, _]) = machine();
    let at = |bus, devfn| machine.read32(RequesterId::new(bus, devfn), 0);
    machine.write32(PORT, 0x18, 0x0005_0500);
    assert_eq!(first.requester(), RequesterId::new(5, 0));
    assert_eq!(at(5, 0), PRESENT);
    // One byte of it, at another width and alignment.
    machine.root.write_config(PORT, 0x19, &[9, 9]);
    assert_eq!(first.requester(), RequesterId::new(9, 0));
    assert_eq!((at(5, 0), at(9, 0)), (u32::MAX, PRESENT));
    // Outside of [secondary, subordinate] the port forwards nothing.
    machine.root.write_config(PORT, 0x1a, &[8]);
    assert_eq!(at(9, 0), u32::MAX);
    machine.root.write_config(PORT, 0x1a, &[0xff]);
    assert_eq!(at(9, 0), PRESENT);
    assert_eq!(at(10, 0), u32::MAX);
    // A bus number 0 hides the bus; its functions keep the last number they heard.
    machine.write32(PORT, 0x18, 0);
    assert_eq!(first.requester(), RequesterId::new(9, 0));
    assert_eq!(at(9, 0), u32::MAX);
    assert_eq!(at(0, 0), 0x0008_1b36);
    // A function that is added later, and one that is taken away.
    machine.write32(PORT, 0x18, 0xff_0300);
    let late = endpoint(&machine);
    _ports[0].bus().insert(1, Arc::clone(&late) as _).unwrap();
    assert_eq!(late.requester(), RequesterId::new(3, 1));
    assert_eq!(at(3, 1), PRESENT);
    assert_eq!(
        _ports[0].bus().insert(1, late),
        Err(TopologyError::Taken(RequesterId::new(3, 1)))
    );
    assert!(_ports[0].bus().remove(1).is_some());
    assert!(_ports[0].bus().remove(1).is_none());
    assert_eq!(at(3, 1), u32::MAX);
}

#[test]
fn renumbering_from_two_vcpus_agrees_with_the_registers() {
    let (machine, _ports, [_, first, _]) = machine();
    std::thread::scope(|scope| {
        for numbers in [[3, 5], [7, 9]] {
            let machine = &machine;
            scope.spawn(move || {
                for round in 0..500 {
                    let number = numbers[round % 2];
                    machine.root.write_config(PORT, 0x19, &[number, 0xff]);
                }
            });
        }
    });
    let secondary = machine.read32(PORT, 0x18).to_le_bytes()[1];
    assert_eq!(first.requester(), RequesterId::new(secondary, 0));
}

/// A function is taken away while a vCPU accesses it (Firecracker #6088, #6087): afterwards it decodes nothing.
#[test]
fn removal_while_in_use() {
    let machine = Machine::new();
    let id = RequesterId::new(0, 3 << 3);
    let kind = BarKind::Memory32 {
        prefetchable: false,
    };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut reader = machine.mmio.reader();
            while !stop.load(Ordering::Relaxed) {
                machine.write32(id, 0x10, 0xe000_0000);
                machine.write32(id, 0x04, 2);
                let vendor = machine.read32(id, 0);
                assert!([PRESENT, u32::MAX].contains(&vendor), "{vendor:#x}");
                peek(&mut reader, 0xe000_0000);
            }
        });
        for _ in 0..200 {
            let function = machine.function(&[(0, kind, 0x1000)], Echo::new(0));
            machine.root.bus().insert(id.devfn(), function).unwrap();
            std::thread::yield_now();
            assert!(machine.root.bus().remove(id.devfn()).is_some());
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(peek(&mut machine.mmio.reader(), 0xe000_0000), None);
}

#[test]
fn ports_claiming_the_same_bus_do_not_confuse() {
    let (machine, ..) = machine();
    machine.write32(PORT, 0x18, 0x0001_0100);
    machine.write32(OTHER_PORT, 0x18, 0x0001_0100);
    assert_eq!(machine.read32(RequesterId::new(1, 0), 0), PRESENT);
    machine.write32(PORT, 0x18, 0xff00_ff00);
    machine.write32(OTHER_PORT, 0x18, 0x00ff_0100);
    for bus in 0..=255 {
        for devfn in [0, 8, 0xff] {
            machine.read32(RequesterId::new(bus, devfn), 0);
        }
    }
}

/// Without ARI a port has one device behind it; with it 256 functions (PCIe §6.13).
#[test]
fn ari_forwarding() {
    let (machine, ports, _) = machine();
    let function = ConfigBuilder::endpoint(IDENTITY)
        .capability(Capability::alternative_routing(0x83))
        .build(&machine.decoder)
        .unwrap();
    assert_eq!(read32(&*function, 0x100), 0x0001_000e);
    assert_eq!(read32(&*function, 0x104), 0x8300);
    ports[0].bus().insert(0x81, function).unwrap();
    machine.write32(PORT, 0x18, 0x0001_0100);
    let high = RequesterId::new(1, 0x81);
    assert_eq!(machine.read32(high, 0), u32::MAX);
    assert_eq!(machine.read32(PORT, 0x40 + 0x24), 0x20);
    machine.write32(PORT, 0x40 + 0x28, 0x20);
    assert_eq!(machine.read32(high, 0), PRESENT);
    machine.write32(PORT, 0x40 + 0x28, 0);
    assert_eq!(machine.read32(high, 0), u32::MAX);
}

/// Without access control services Linux puts all functions below a port into one IOMMU group.
#[test]
fn root_ports_show_access_control() {
    let (machine, ..) = machine();
    assert_eq!(machine.read32(PORT, 0x100), 0x0001_000d);
    assert_eq!(machine.read32(PORT, 0x104), 0x001d);
    machine.write32(PORT, 0x104, u32::MAX);
    assert_eq!(machine.read32(PORT, 0x104), 0x001d_001d);
}

/// What Linux looks at in a root port: its type, no slot, a link that is up, and all windows.
#[test]
fn root_ports_look_sane() {
    let (machine, ..) = machine();
    assert_eq!(machine.read32(PORT, 0x34) & 0xff, 0x40);
    assert_eq!(machine.read32(PORT, 0x40), 0x0042_0010);
    assert_eq!(machine.read32(PORT, 0x4c), 0x0410_0011, "link capabilities");
    assert_eq!(machine.read32(PORT, 0x50), 0x2011_0000, "link status");
    assert_eq!(machine.read32(PORT, 0x54), 0, "no slot");
    for (offset, written, read) in [
        (0x18, u32::MAX, 0x00ff_ffff),
        (0x1c, u32::MAX, 0x0000_f1f1),
        (0x20, u32::MAX, 0xfff0_fff0),
        (0x24, u32::MAX, 0xfff1_fff1),
        (0x28, u32::MAX, u32::MAX),
        (0x2c, u32::MAX, u32::MAX),
        (0x30, u32::MAX, u32::MAX),
        (0x38, u32::MAX, 0),
        (0x3c, 0xffbf_ffff, 0x001f_00ff),
    ] {
        machine.write32(PORT, offset, written);
        assert_eq!(machine.read32(PORT, offset), read, "{offset:#x}");
    }
    machine.write32(PORT, 0x04, u32::MAX);
    assert_eq!(machine.read32(PORT, 0x04), 0x0010_0547);
}

#[test]
fn a_secondary_bus_reset_resets_what_is_behind() {
    let (machine, ports, [direct, first, second]) = machine();
    for function in [&direct, &first, &second] {
        write32(&**function, 0x3c, 0x55);
    }
    machine.write32(PORT, 0x18, 0x0001_0100);
    machine.write32(PORT, 0x3c, 0x0040_0000);
    assert_eq!(read32(&*first, 0x3c), 0);
    // It is the rising bit that resets.
    write32(&*first, 0x3c, 0x55);
    machine.write32(PORT, 0x3c, 0x0040_0000);
    assert_eq!(read32(&*first, 0x3c), 0x55);
    machine.write32(PORT, 0x3c, 0);
    assert_eq!([&direct, &second].map(|f| read32(&**f, 0x3c)), [0x55; 2]);
    ports[0].reset();
    assert_eq!(read32(&*first, 0x3c), 0);
    assert_eq!(machine.read32(PORT, 0x18), 0);
    machine.root.bus().reset();
    assert_eq!(read32(&*second, 0x3c), 0);
}

#[test]
fn a_restored_port_numbers_its_bus() {
    let (machine, ports, _) = machine();
    machine.write32(PORT, 0x18, 0x0007_0700);
    let saved = ports[0].save();
    let (other, ports, [_, first, _]) = self::machine();
    ports[0].restore(&saved).unwrap();
    assert_eq!(first.requester(), RequesterId::new(7, 0));
    assert_eq!(other.read32(RequesterId::new(7, 0), 0), PRESENT);
}

/// Pins are spread over the lines by device number and rotate at each bridge (Bridge §9.1, table 9-1).
#[test]
fn interrupt_pins_swizzle() {
    let (machine, ports, _) = machine();
    let pins = [
        InterruptPin::A,
        InterruptPin::B,
        InterruptPin::C,
        InterruptPin::D,
    ];
    for device in 0..32 {
        for (index, pin) in pins.into_iter().enumerate() {
            let line = machine.root.intx().line(device, pin);
            assert_eq!(line, (usize::from(device) + index) % 4);
            let pin = machine.root.intx().pin(device, pin);
            pin.set_level(true);
            let levels: Vec<_> = machine.lines.iter().map(|line| line.asserted()).collect();
            assert_eq!(levels.iter().position(|&level| level), Some(line));
            assert_eq!(levels.iter().filter(|&&level| level).count(), 1);
        }
    }
    assert_eq!(ports[0].intx().line(0, InterruptPin::B), 1);
    assert_eq!(ports[1].intx().line(0, InterruptPin::D), 0);
}

fn access<const N: usize>(device: &dyn BusDevice, offset: u64) -> Result<[u8; N], AccessError> {
    let mut data = [0; N];
    device.read(offset, &mut data).map(|()| data)
}

#[test]
fn ecam_reaches_all_4096_bytes_of_each_function() {
    let (machine, ..) = machine();
    let ecam = Ecam::new(&machine.root);
    machine.write32(PORT, 0x18, 0x0001_0100);
    let at = |bus: u64, devfn: u64| bus << 20 | devfn << 12;
    assert_eq!(access(&ecam, at(1, 0)), Ok(PRESENT.to_le_bytes()));
    assert_eq!(
        access(&ecam, at(0, 32) + 0x100),
        Ok(0x0001_000d_u32.to_le_bytes())
    );
    assert_eq!(access(&ecam, at(0, 24) + 1), Ok([0x1a, 0x42]));
    assert_eq!(
        access(&ecam, at(0, 24)),
        Ok(0x0010_0000_1042_1af4_u64.to_le_bytes())
    );
    assert_eq!(access(&ecam, at(2, 0)), Ok([0xff; 4]));
    assert_eq!(access(&ecam, at(255, 255) + 0xfff), Ok([0xff]));
    ecam.write(at(0, 24) + 0x3c, &[0x5a]).unwrap();
    ecam.write(at(99, 0) + 0x3c, &[0x5a]).unwrap();
    assert_eq!(access(&ecam, at(0, 24) + 0x3c), Ok([0x5a, 0]));
    for width in 1..=8_usize {
        for offset in 0xff0..0x1000_u64 {
            let fits = offset + width as u64 <= 0x1000;
            assert_eq!(
                ecam.read(at(0, 24) + offset, &mut vec![0; width]).is_ok(),
                fits
            );
            assert_eq!(
                ecam.write(at(0, 24) + offset, &vec![0; width]).is_ok(),
                fits
            );
        }
    }
    for offset in [Ecam::SIZE, u64::MAX - 3] {
        assert!(access::<4>(&ecam, offset).is_err());
        assert!(ecam.write(offset, &[0; 4]).is_err());
    }
}

/// A machine that is dropped frees its devices: its parts do not keep each other alive.
#[test]
fn a_dropped_machine_is_freed() {
    let machine = Machine::new();
    let device = Echo::new(0);
    let kind = BarKind::Memory32 {
        prefetchable: false,
    };
    let function = machine.function(&[(0, kind, 0x1000)], Arc::clone(&device) as _);
    machine.root.bus().insert(8, function).unwrap();
    let (ecam, ports) = (Ecam::new(&machine.root), ConfigPorts::new(&machine.root));
    let (ecam, ports) = (Arc::new(ecam), Arc::new(ports));
    machine
        .mmio
        .insert(0, Ecam::SIZE, "ecam", Arc::clone(&ecam) as _)
        .unwrap();
    machine
        .pio
        .insert(0xcf8, 8, "ports", Arc::clone(&ports) as _)
        .unwrap();
    ports.restore(0x8000_0000);
    drop(machine);
    assert_eq!(Arc::strong_count(&device), 1);
    assert_eq!(access(&*ecam, 0), Ok([0xff; 4]));
    assert_eq!(access(&*ports, 4), Ok([0xff; 4]));
    ecam.write(4, &[0]).unwrap();
    ports.write(4, &[0]).unwrap();
}

/// Ports 0xCF8 to 0xCFF: all offsets and widths 1 to 8.
#[test]
fn config_ports_partial_accesses() {
    let (machine, ..) = machine();
    let ports = ConfigPorts::new(&machine.root);
    let select = |address: u32| ports.write(0, &address.to_le_bytes()).unwrap();
    assert_eq!(access(&ports, 0), Ok([0; 4]));
    assert_eq!(access(&ports, 4), Ok([0xff; 4]), "not enabled");
    select(u32::MAX);
    assert_eq!(access(&ports, 0), Ok(0x80ff_fffc_u32.to_le_bytes()));
    // Partial accesses do not reach the address register.
    let registers = [0xf4, 0x1a, 0x42, 0x10];
    for register in [0_u32, 8] {
        select(0x8000_1800 | register);
        for offset in 0..8 {
            for width in 1..=8_usize {
                let mut data = vec![0xee; width];
                let read = ports.read(offset, &mut data);
                let write = ports.write(offset, &vec![0; width]);
                if offset == 0 && width == 4 {
                    assert_eq!((read, write), (Ok(()), Ok(())));
                    select(0x8000_1800 | register);
                } else if offset >= 4 && offset + width as u64 <= 8 {
                    assert_eq!((read, write), (Ok(()), Ok(())));
                    if register == 0 {
                        let at = usize::from(offset.to_le_bytes()[0]) - 4;
                        assert_eq!(Some(&data[..]), registers.get(at..at + width));
                    }
                } else {
                    assert!(read.is_err() && write.is_err(), "{width} bytes at {offset}");
                }
                assert_eq!(ports.save(), 0x8000_1800 | register);
            }
        }
    }
    select(0x8000_183c);
    ports.write(4, &[0x77]).unwrap();
    ports.write(5, &[0xff]).unwrap();
    assert_eq!(access(&ports, 4), Ok([0x77, 0, 0, 0]));
    assert_eq!(access(&ports, 6), Ok([0, 0]));
    select(0x0000_183c);
    ports.write(4, &[0x11]).unwrap();
    assert_eq!(machine.read32(RequesterId::new(0, 0x18), 0x3c), 0x77);
    select(0x80ff_ff00);
    assert_eq!(access(&ports, 4), Ok([0xff; 4]));
    ports.restore(u32::MAX);
    assert_eq!(ports.save(), 0x80ff_fffc);
}
