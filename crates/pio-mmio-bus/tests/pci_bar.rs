//! Base address registers: sizing, decoding, moving (PCI Local Bus Specification 3.0 §6.2.5).
#![expect(clippy::unwrap_used, reason = "test code")]

mod machine;

use std::sync::{Arc, Mutex, OnceLock, Weak};

use machine::*;
use pio_mmio_bus::bus::{AccessError, BusDevice, Doorbell};
use pio_mmio_bus::pci::{
    Bar, BarKind, ConfigBuilder, ConfigError, ConfigSpace, Follower, PciFunction,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const IO: BarKind = BarKind::Io;
const M32: BarKind = BarKind::Memory32 {
    prefetchable: false,
};
const M64: BarKind = BarKind::Memory64 { prefetchable: true };

/// As Linux sizes a BAR: decode off, all ones, read back, write the old value.
fn size(function: &dyn PciFunction, index: u16) -> (u32, u32) {
    let offset = BAR0 + 4 * index;
    let old = read32(function, offset);
    write32(function, offset, u32::MAX);
    let mask = read32(function, offset);
    write32(function, offset, old);
    assert_eq!(read32(function, offset), old);
    (old, mask)
}

#[test]
fn each_kind_shows_its_size_and_flags() {
    let machine = Machine::new();
    let function = machine.function(
        &[
            (0, IO, 0x20),
            (1, M32, 0x1000),
            (2, BarKind::Memory32 { prefetchable: true }, 0x10),
            (4, M64, 1 << 33),
        ],
        Echo::new(0),
    );
    assert_eq!(size(&*function, 0), (0x1, 0xffff_ffe1));
    assert_eq!(size(&*function, 1), (0x0, 0xffff_f000));
    assert_eq!(size(&*function, 2), (0x8, 0xffff_fff8));
    assert_eq!(size(&*function, 3), (0x0, 0x0), "absent");
    assert_eq!(size(&*function, 4), (0xc, 0xc));
    assert_eq!(size(&*function, 5), (0x0, 0xffff_fffe));
    assert_eq!(
        {
            write32(&*function, 0x30, 0xffff_f800);
            read32(&*function, 0x30)
        },
        0,
        "no ROM"
    );
}

#[test]
fn extreme_sizes() {
    let machine = Machine::new();
    for (kind, size, low, high) in [
        (IO, 4, 0xffff_fffd, None),
        (IO, 0x1_0000, 0xffff_0001, None),
        (M32, 16, 0xffff_fff0, None),
        (M32, 1 << 31, 0x8000_0000, None),
        (M64, 16, 0xffff_fffc, Some(0xffff_ffff)),
        (M64, 1 << 31, 0x8000_000c, Some(0xffff_ffff)),
        (M64, 1 << 63, 0x0000_000c, Some(0x8000_0000)),
    ] {
        let function = machine.function(&[(0, kind, size)], Echo::new(0));
        write32(&*function, BAR0, u32::MAX);
        assert_eq!(read32(&*function, BAR0), low, "{kind:?} {size:#x}");
        if let Some(high) = high {
            write32(&*function, BAR0 + 4, u32::MAX);
            assert_eq!(read32(&*function, BAR0 + 4), high, "{kind:?} {size:#x}");
        }
    }
}

#[test]
fn impossible_bars_are_refused() {
    let machine = Machine::new();
    let build = |bars: &[(usize, BarKind, u64)], bridge: bool| {
        let mut builder = if bridge {
            ConfigBuilder::bridge(IDENTITY)
        } else {
            ConfigBuilder::endpoint(IDENTITY)
        };
        for &(index, kind, size) in bars {
            builder = builder.bar(
                index,
                Bar {
                    kind,
                    size,
                    name: "x".into(),
                    device: Echo::new(0),
                },
            );
        }
        builder.build(&machine.decoder).map(|_| ())
    };
    for size in [0, 1, 3, 0x30, 0x1001, u64::MAX, 1 << 32] {
        assert!(
            matches!(
                build(&[(0, M32, size)], false),
                Err(ConfigError::BarSize { .. })
            ),
            "{size:#x}"
        );
    }
    assert!(matches!(
        build(&[(0, IO, 0x2_0000)], false),
        Err(ConfigError::BarSize { .. })
    ));
    for bars in [
        &[(6, M32, 0x1000)][..],
        &[(5, M64, 0x1000)],
        &[(usize::MAX, M32, 0x1000)],
        &[(0, M64, 0x1000), (1, M32, 0x1000)],
        &[(1, M32, 0x1000), (0, M64, 0x1000)],
        &[(2, M32, 0x1000), (2, IO, 0x10)],
    ] {
        assert!(
            matches!(build(bars, false), Err(ConfigError::BarIndex { .. })),
            "{bars:?}"
        );
    }
    assert!(
        build(&[(2, M32, 0x1000)], true).is_err(),
        "a bridge has two"
    );
    assert!(build(&[(0, M64, 0x1000)], true).is_ok());
}

#[test]
fn decoded_only_while_the_command_register_says_so() {
    let machine = Machine::new();
    let function = machine.function(&[(0, IO, 0x20), (1, M32, 0x1000)], Echo::new(7));
    let (mut pio, mut mmio) = (machine.pio.reader(), machine.mmio.reader());
    write32(&*function, BAR0, 0xc000);
    write32(&*function, BAR0 + 4, 0xe000_0000);
    for command in 0..4 {
        write16(&*function, COMMAND, command);
        let io = (command & COMMAND_IO != 0).then_some(7 + 4);
        let memory = (command & COMMAND_MEMORY != 0).then_some(7 + 0x10);
        assert_eq!(peek(&mut pio, 0xc004), io);
        assert_eq!(peek(&mut mmio, 0xe000_0010), memory);
    }
    // A byte write that reaches the register counts, and one beside it does not.
    function.write_config(COMMAND + 1, &[0]);
    assert_eq!(peek(&mut mmio, 0xe000_0010), Some(0x17));
    function.write_config(COMMAND, &[0]);
    assert_eq!(peek(&mut mmio, 0xe000_0010), None);
    function.write_config(COMMAND, &[3]);
    function.reset();
    assert_eq!(peek(&mut mmio, 0xe000_0010), None);
    assert_eq!(peek(&mut pio, 0xc004), None);
}

#[test]
fn moves_with_decode_on_one_half_or_one_byte_at_a_time() {
    let machine = Machine::new();
    let function = machine.function(&[(2, M64, 0x1_0000)], Echo::new(0));
    let mut mmio = machine.mmio.reader();
    write16(&*function, COMMAND, COMMAND_MEMORY);
    write32(&*function, 0x18, 0xe000_0000);
    assert_eq!(peek(&mut mmio, 0xe000_0005), Some(5));
    write32(&*function, 0x1c, 0x12);
    assert_eq!(peek(&mut mmio, 0xe000_0005), None);
    assert_eq!(peek(&mut mmio, 0x12_e000_0005), Some(5));
    function.write_config(0x1b, &[0xc0]);
    assert_eq!(peek(&mut mmio, 0x12_c000_0005), Some(5));
    // Both halves in one access of eight bytes.
    function.write_config(0x18, &0x34_5678_0000_u64.to_le_bytes());
    assert_eq!(peek(&mut mmio, 0x34_5678_0005), Some(5));
}

#[test]
fn at_the_top_of_the_address_space() {
    let machine = Machine::new();
    let function = machine.function(
        &[(0, M64, 0x1000), (2, IO, 0x100), (3, M32, 0x1000)],
        Echo::new(0),
    );
    write16(&*function, COMMAND, COMMAND_IO | COMMAND_MEMORY);
    function.write_config(BAR0, &u64::MAX.to_le_bytes());
    let (mut pio, mut mmio) = (machine.pio.reader(), machine.mmio.reader());
    assert_eq!(peek(&mut mmio, u64::MAX), Some(0xff));
    write32(&*function, BAR0 + 12, u32::MAX);
    assert_eq!(peek(&mut mmio, 0xffff_ffff), Some(0xff));
    // I/O addresses end at 16 bits: beyond is nowhere.
    write32(&*function, BAR0 + 8, u32::MAX);
    assert_eq!(peek(&mut pio, 0xff01), None);
    write32(&*function, BAR0 + 8, 0xff00);
    assert_eq!(peek(&mut pio, 0xffff), Some(0xff));
    // A huge one at 0 and at its only other place.
    let huge = machine.function(&[(0, M64, 1 << 63)], Echo::new(0x40));
    function.reset();
    write16(&*huge, COMMAND, COMMAND_MEMORY);
    assert_eq!(peek(&mut mmio, 1), Some(0x41));
    huge.write_config(BAR0, &u64::MAX.to_le_bytes());
    assert_eq!(peek(&mut mmio, 1), None);
    assert_eq!(peek(&mut mmio, u64::MAX), Some(0x3f));
}

/// Two BARs trade places while decoded: for a moment they overlap, afterwards both answer.
#[test]
fn overlapping_bars_answer_once_there_is_room() {
    let machine = Machine::new();
    let a = machine.function(&[(0, M32, 0x1000)], Echo::new(0xa0));
    let b = machine.function(&[(0, M32, 0x1000)], Echo::new(0xb0));
    let mut mmio = machine.mmio.reader();
    for (function, base) in [(&a, 0xe000_0000), (&b, 0xe000_1000)] {
        write32(&**function, BAR0, base);
        write16(&**function, COMMAND, COMMAND_MEMORY);
    }
    write32(&*a, BAR0, 0xe000_1000);
    assert_eq!(peek(&mut mmio, 0xe000_0000), None);
    assert_eq!(
        peek(&mut mmio, 0xe000_1000),
        Some(0xb0),
        "first come, first served"
    );
    write32(&*b, BAR0, 0xe000_0000);
    assert_eq!(peek(&mut mmio, 0xe000_0000), Some(0xb0));
    assert_eq!(peek(&mut mmio, 0xe000_1000), Some(0xa0));
    // The one that waits gives up when its decode goes off, or it is dropped.
    write32(&*b, BAR0, 0xe000_1000);
    assert_eq!(peek(&mut mmio, 0xe000_0000), None);
    write16(&*b, COMMAND, 0);
    write16(&*a, COMMAND, 0);
    assert_eq!(peek(&mut mmio, 0xe000_1000), None);
    write16(&*a, COMMAND, COMMAND_MEMORY);
    write16(&*b, COMMAND, COMMAND_MEMORY);
    drop(a);
    assert_eq!(peek(&mut mmio, 0xe000_1000), Some(0xb0));
}

#[test]
fn a_function_taken_off_its_bus_decodes_nothing() {
    let machine = Machine::new();
    let function = machine.function(&[(0, M32, 0x1000)], Echo::new(0));
    let bus = machine.root.bus();
    bus.insert(8, Arc::clone(&function) as _).unwrap();
    write32(&*function, BAR0, 0xe000_0000);
    write16(&*function, COMMAND, COMMAND_MEMORY);
    let mut mmio = machine.mmio.reader();
    assert_eq!(peek(&mut mmio, 0xe000_0000), Some(0));
    bus.remove(8).unwrap();
    assert_eq!(peek(&mut mmio, 0xe000_0000), None);
}

/// A BAR that the guest puts over something fixed (a ROM, an interrupt controller) never takes its place.
#[test]
fn fixed_regions_cannot_be_covered() {
    let machine = Machine::new();
    machine
        .mmio
        .insert(0xfec0_0000, 0x1000, "ioapic", Echo::new(0xc0))
        .unwrap();
    let function = machine.function(&[(0, M32, 1 << 24)], Echo::new(0));
    let mut mmio = machine.mmio.reader();
    write16(&*function, COMMAND, COMMAND_MEMORY);
    for base in [0xfe00_0000, u32::MAX] {
        write32(&*function, BAR0, base);
        assert_eq!(peek(&mut mmio, 0xfec0_0000), Some(0xc0));
    }
    write32(&*function, BAR0, 0xfe00_0000);
    assert_eq!(peek(&mut mmio, 0xfe00_0000), None);
    write32(&*function, BAR0, 0xfd00_0000);
    assert_eq!(peek(&mut mmio, 0xfd00_0001), Some(1));
}

/// A doorbell on a BAR rings wherever the BAR is, and only while it is decoded.
#[test]
fn doorbells_follow_the_bar() {
    let machine = Machine::new();
    let device = Echo::new(0);
    let function = machine.function(&[(0, M32, 0x1000)], Arc::clone(&device) as _);
    let eventfd = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let (space, region) = function.bar_region(0).unwrap();
    assert_eq!(function.bar_region(1), None);
    let doorbell = Doorbell {
        width: Some(2),
        datamatch: None,
        needs_value: false,
        eventfd: Arc::clone(&eventfd),
    };
    let bus = machine.decoder.bus(space);
    bus.add_doorbell(region, 0x104, doorbell).unwrap();
    let mut mmio = machine.mmio.reader();
    let mut rung = |base: u64| {
        let _ = mmio.write(base + 0x104, &[0, 0]);
        eventfd.read().is_ok()
    };
    let place = |base: u32| write32(&*function, BAR0, base);
    place(0xe000_0000);
    assert!(!rung(0xe000_0000));
    write16(&*function, COMMAND, COMMAND_MEMORY);
    assert!(rung(0xe000_0000));
    place(0xf000_0000);
    assert!(!rung(0xe000_0000));
    assert!(rung(0xf000_0000));
    write16(&*function, COMMAND, 0);
    assert!(!rung(0xf000_0000));
    // Displaced for a while by something fixed.
    let fixed = bus
        .insert(0xe000_0000, 0x10, "fixed", Echo::new(0))
        .unwrap();
    place(0xe000_0000);
    write16(&*function, COMMAND, COMMAND_MEMORY);
    assert!(!rung(0xe000_0000));
    drop(bus.remove(fixed).unwrap());
    place(0xe000_0000);
    assert!(rung(0xe000_0000));
    assert!(device.written.lock().unwrap().is_empty());
}

/// Moves its own BAR when it is written.
#[derive(Default)]
struct Mover(OnceLock<Weak<ConfigSpace>>);

impl BusDevice for Mover {
    fn read(&self, _: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(0x55);
        Ok(())
    }

    fn write(&self, _: u64, data: &[u8]) -> Result<(), AccessError> {
        let function = self.0.get().unwrap().upgrade().unwrap();
        function.write_config(BAR0, data);
        Ok(())
    }
}

/// A device moves its own BAR during its own access, while another vCPU accesses it wherever it is
/// (Firecracker #6088, #6087).
#[test]
fn device_moves_its_own_bar_during_its_own_access() {
    let machine = Machine::new();
    let device = Arc::new(Mover::default());
    let function = machine.function(&[(0, M32, 0x1000)], Arc::clone(&device) as _);
    device.0.set(Arc::downgrade(&function)).unwrap();
    write16(&*function, COMMAND, COMMAND_MEMORY);
    let places = [0xe000_0000_u32, 0xe000_1000, 0xf000_0000];
    write32(&*function, BAR0, places[0]);
    let mmio = machine.mmio.clone();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let other = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let mut reader = mmio.reader();
            let mut hits = 0_usize;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) || hits == 0 {
                for place in places {
                    match peek(&mut reader, place.into()) {
                        Some(byte) => {
                            assert_eq!(byte, 0x55);
                            hits += 1;
                        }
                        None => std::thread::yield_now(),
                    }
                }
            }
        }
    });
    let mut reader = machine.mmio.reader();
    for round in 0..300 {
        let (from, to) = (places[round % 3], places[(round + 1) % 3]);
        let _ = reader.write(from.into(), &to.to_le_bytes());
        assert_eq!(peek(&mut reader, to.into()), Some(0x55));
        assert_eq!(peek(&mut reader, from.into()), None);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    other.join().unwrap();
}

/// What a follower was told.
#[derive(Default)]
struct Told(Mutex<Vec<Option<u64>>>);

impl Follower for Told {
    fn follow(&self, base: Option<u64>) {
        self.0.lock().unwrap().push(base);
    }
}

/// A follower is never told of a place where another region answers, and of none before the region leaves one.
#[test]
fn a_follower_is_told_where_its_region_answers() {
    let machine = Machine::new();
    let region = |name| {
        let region = machine.decoder.region(M32, 0x1000, name, Echo::new(0));
        region.unwrap()
    };
    let (followed, other) = (region("followed"), region("other"));
    let told = Arc::new(Told::default());
    followed.set_follower(told.clone());
    let take = || std::mem::take(&mut *told.0.lock().unwrap());

    followed.place(Some(0x1000));
    followed.place(Some(0x1000));
    assert_eq!(take(), [Some(0x1000)]);
    followed.place(Some(0x3000));
    assert_eq!(take(), [None, Some(0x3000)]);
    // The other's place is taken: the followed region is nowhere, and returns when there is room.
    other.place(Some(0x5000));
    followed.place(Some(0x4800));
    assert_eq!(take(), [None]);
    other.place(Some(0x6000));
    assert_eq!(take(), [Some(0x4800)]);
    followed.place(None);
    followed.place(None);
    assert_eq!(take(), [None]);
    followed.place(Some(0x1000));
    drop(followed);
    assert_eq!(take(), [Some(0x1000), None]);
}
