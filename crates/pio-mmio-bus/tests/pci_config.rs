//! Configuration space: masks, capabilities, reset, saved state.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

mod machine;

use std::ops::Range;
use std::sync::{Arc, Mutex};

use machine::*;
use pio_mmio_bus::interrupt::IrqLine;
use pio_mmio_bus::pci::{
    Bar, BarKind, Capability, CapabilityHandler, ConfigBuilder, ConfigError, ConfigSpace,
    ConfigSpaceState, ConfigStateError, InterruptPin, Msi, Msix, PciFunction, PortType,
    RequesterId,
};
use proptest::prelude::*;

fn read8(function: &dyn PciFunction, offset: u16) -> u8 {
    let mut byte = [0];
    function.read_config(offset, &mut byte);
    byte[0]
}

/// The capabilities that a guest finds by walking the list: identifier and offset.
fn walk(function: &dyn PciFunction) -> Vec<(u8, u16)> {
    let mut found = Vec::new();
    let mut at = u16::from(read8(function, 0x34));
    while at != 0 {
        assert!(at >= 0x40 && at.is_multiple_of(4) && found.len() < 48);
        found.push((read8(function, at), at));
        at = u16::from(read8(function, at + 1));
    }
    found
}

/// The same for extended capabilities, with the version.
fn walk_extended(function: &dyn PciFunction) -> Vec<(u16, u8, u16)> {
    let mut found = Vec::new();
    let mut at = 0x100;
    while at != 0 {
        let header = read32(function, at);
        if header == 0 {
            break;
        }
        found.push(((header & 0xffff) as u16, (header >> 16 & 0xf) as u8, at));
        at = (header >> 20) as u16;
        assert!(found.len() < 960);
    }
    found
}

/// A function with everything that has masks.
fn full(machine: &Machine) -> Arc<ConfigSpace> {
    let router = pio_mmio_bus::interrupt::RecordingRouter::new();
    let msix = Msix::new(3, &router).unwrap();
    let msi = Msi::new(4, &router).unwrap();
    ConfigBuilder::endpoint(IDENTITY)
        .interrupt(machine.root.intx().pin(1, InterruptPin::B))
        .capability(Capability::express(PortType::Endpoint))
        .capability(msix.capability(0, 0))
        .capability(msi.capability())
        .capability(
            Capability::standard(0x09, 7)
                .value(2, &[7, 0x11, 0x22, 0x33, 0x44])
                .writable(3, &[0xf0])
                .write_one_to_clear(4, &[0x0f]),
        )
        .capability(Capability::extended(0x000b, 1, 0x10).writable(8, &[0xff, 0xff, 0, 0xff]))
        .build(&machine.decoder)
        .unwrap()
}

#[test]
fn header_and_lists() {
    let machine = Machine::new();
    let function = full(&machine);
    assert_eq!(read32(&*function, 0x00), 0x1042_1af4);
    assert_eq!(read32(&*function, 0x08), 0x0180_0001);
    assert_eq!(read8(&*function, 0x0e), 0);
    assert_eq!(read32(&*function, 0x2c), 0x1100_1af4);
    assert_eq!(read8(&*function, 0x3d), 2, "INTB#");
    assert_eq!(read16(&*function, 0x06), 0x10);
    assert_eq!(
        walk(&*function),
        [(0x10, 0x40), (0x11, 0x7c), (0x05, 0x88), (0x09, 0xa0)]
    );
    assert_eq!(walk_extended(&*function), [(0x0b, 1, 0x100)]);
    let bare = ConfigBuilder::endpoint(IDENTITY)
        .multi_function()
        .build(&machine.decoder)
        .unwrap();
    assert_eq!(walk(&*bare), []);
    assert_eq!(read16(&*bare, 0x06), 0);
    assert_eq!(read32(&*bare, 0x100), 0);
    assert_eq!(read8(&*bare, 0x0e), 0x80);
}

#[test]
fn lists_fill_up_to_the_last_byte_and_no_further() {
    let machine = Machine::new();
    let standard = |lengths: &[usize]| {
        let builder = ConfigBuilder::endpoint(IDENTITY);
        let builder = lengths.iter().fold(builder, |b, &length| {
            b.capability(Capability::standard(9, length))
        });
        builder.build(&machine.decoder)
    };
    let full = standard(&[0xb0, 0x10]).unwrap();
    assert_eq!(walk(&*full), [(9, 0x40), (9, 0xf0)]);
    for lengths in [&[0xb1, 0x10][..], &[0xc1], &[1], &[0], &[0xc0, 2]] {
        assert!(
            matches!(standard(lengths), Err(ConfigError::CapabilityLength { .. })),
            "{lengths:?}"
        );
    }
    let extended = |lengths: &[usize]| {
        let builder = ConfigBuilder::endpoint(IDENTITY);
        let builder = lengths.iter().fold(builder, |b, &length| {
            b.capability(Capability::extended(0xb, 1, length))
        });
        builder.build(&machine.decoder)
    };
    let full = extended(&[0xe00, 0x100]).unwrap();
    assert_eq!(walk_extended(&*full), [(0xb, 1, 0x100), (0xb, 1, 0xf00)]);
    for lengths in [&[0xf01][..], &[0xe01, 0x100], &[3], &[0xf00, 4]] {
        assert!(extended(lengths).is_err(), "{lengths:?}");
    }
}

/// What the guest may do to each bit, as a list of its own: offset, writable, clearable.
fn masks() -> Vec<(u8, u8)> {
    let mut masks = vec![(0, 0); 4096];
    let mut set = |at: usize, writable: &[u8], clearable: &[u8]| {
        for (i, &byte) in writable.iter().enumerate() {
            masks[at + i].0 = byte;
        }
        for (i, &byte) in clearable.iter().enumerate() {
            masks[at + i].1 = byte;
        }
    };
    set(0x04, &[0x44, 0x05], &[]);
    set(0x06, &[], &[0x00, 0xf9]);
    set(0x0c, &[0xff], &[]);
    set(0x3c, &[0xff], &[]);
    // PCI Express: device control without its reset bit, device status, link control, link control 2.
    set(0x48, &[0xff, 0x78], &[]);
    set(0x4a, &[], &[0x0f]);
    set(0x50, &[0xcb, 0x00], &[]);
    set(0x70, &[0x0f], &[]);
    // MSI-X control.
    set(0x7e, &[0x00, 0xc0], &[]);
    // MSI control, address, data, masks of four vectors.
    set(0x8a, &[0x71, 0x00], &[]);
    set(
        0x8c,
        &[0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &[],
    );
    set(0x98, &[0x0f], &[]);
    // Vendor-specific, and an extended one.
    set(0xa3, &[0xf0], &[]);
    set(0xa4, &[], &[0x0f]);
    set(0x108, &[0xff, 0xff, 0x00, 0xff], &[]);
    masks
}

/// Configuration space: all offsets and widths 1 to 8, straddles, writes to read-only bits (Firecracker d91a74c1b).
#[test]
fn config_space_offsets_and_widths() {
    let machine = Machine::new();
    let masks = masks();
    let function = full(&machine);
    let mut model: Vec<u8> = (0..4096).map(|at| read8(&*function, at)).collect();
    let patterns = [0xff, 0x00, 0xa5, 0x5a];
    for (round, width) in (1..=8).enumerate() {
        for offset in 0..=4096 + 8_u16 {
            let pattern = patterns[(usize::from(offset) + round) % 4];
            let mut data = vec![pattern; width];
            for (i, byte) in data.iter_mut().enumerate() {
                // The bit that starts a reset stays 0 here.
                if usize::from(offset) + i == 0x49 {
                    *byte &= 0x7f;
                }
            }
            function.write_config(offset, &data);
            for (i, byte) in data.iter().enumerate() {
                let at = usize::from(offset) + i;
                if let (Some(value), Some((writable, clearable))) =
                    (model.get_mut(at), masks.get(at))
                {
                    *value = (*value & !writable | byte & writable) & !(byte & clearable);
                }
            }
            let mut data = vec![0; width];
            function.read_config(offset, &mut data);
            for (i, byte) in data.iter().enumerate() {
                let at = usize::from(offset) + i;
                let expected = model.get(at).copied().unwrap_or(0xff);
                assert_eq!(*byte, expected, "{at:#x} in {width} bytes at {offset:#x}");
            }
        }
    }
    assert_eq!(function.save().registers, model);
    function.read_config(u16::MAX, &mut [0; 8]);
    function.write_config(u16::MAX, &[0; 8]);
    function.write_config(0, &[]);
    function.read_config(0, &mut []);
}

#[test]
fn a_function_level_reset_restores_everything() {
    let machine = Machine::new();
    let function = full(&machine);
    let fresh = function.save();
    write16(&*function, COMMAND, 0xffff);
    write32(&*function, 0x3c, 0xff);
    function.write_config(0x7f, &[0xc0]);
    assert_ne!(function.save(), fresh);
    write16(&*function, 0x48, 0x8000);
    assert_eq!(function.save(), fresh);
    assert_eq!(read16(&*function, 0x48), 0x2810);
}

/// Remembers what it is told, and answers with a counter.
#[derive(Default)]
struct Probe {
    log: Mutex<Vec<String>>,
    reads: Mutex<u8>,
}

impl CapabilityHandler for Probe {
    fn refresh(&self, registers: &mut [u8], range: Range<usize>) {
        let mut reads = self.reads.lock().unwrap();
        *reads += 1;
        registers[4] = *reads;
        self.log.lock().unwrap().push(format!("read {range:?}"));
    }

    fn written(&self, registers: &[u8], range: Range<usize>) {
        let value = registers[range.start];
        self.log
            .lock()
            .unwrap()
            .push(format!("written {range:?} {value:#x}"));
    }

    fn set_bus_master(&self, enabled: bool) {
        self.log.lock().unwrap().push(format!("master {enabled}"));
    }

    fn set_requester(&self, requester: RequesterId) {
        self.log.lock().unwrap().push(format!("is {requester}"));
    }

    fn reset(&self) {
        self.log.lock().unwrap().push("reset".into());
    }
}

#[test]
fn handlers_see_their_part_of_each_access() {
    let machine = Machine::new();
    let probe = Arc::new(Probe::default());
    let log = || std::mem::take(&mut *probe.log.lock().unwrap());
    let function = ConfigBuilder::endpoint(IDENTITY)
        .capability(
            Capability::standard(9, 8)
                .writable(4, &[0, 0xf0])
                .handler(Arc::clone(&probe) as _),
        )
        .build(&machine.decoder)
        .unwrap();
    function.write_config(0x3e, &[0; 4]);
    assert_eq!(log(), ["written 0..2 0x9"]);
    function.write_config(0x45, &[0xff; 8]);
    assert_eq!(log(), ["written 5..8 0xf0"]);
    function.write_config(0x48, &[0xff; 8]);
    assert_eq!(log(), [""; 0]);
    let mut bytes = [0; 8];
    function.read_config(0x42, &mut bytes);
    assert_eq!(bytes, [0, 0, 1, 0xf0, 0, 0, 0, 0]);
    function.read_config(0x44, &mut bytes[..1]);
    assert_eq!(bytes[0], 2, "read once for each access");
    assert_eq!(log(), ["read 2..8", "read 4..5"]);
    machine
        .root
        .bus()
        .insert(0x18, Arc::clone(&function) as _)
        .unwrap();
    function.reset();
    assert_eq!(
        log(),
        ["is 00:03.0", "reset", "master false", "written 0..8 0x9"]
    );
    write16(&*function, COMMAND, COMMAND_BUS_MASTER);
    assert_eq!(log(), ["master true"]);
    assert_eq!(function.requester(), RequesterId::new(0, 0x18));
    let saved = function.save();
    function.restore(&saved).unwrap();
    assert_eq!(log(), ["master true", "written 0..8 0x9"]);
}

#[test]
fn the_interrupt_pin_is_shared_shown_and_silenced() {
    let machine = Machine::new();
    let pin = machine.root.intx().pin(1, InterruptPin::B);
    let function = ConfigBuilder::endpoint(IDENTITY)
        .interrupt(Arc::clone(&pin))
        .build(&machine.decoder)
        .unwrap();
    let other = machine.root.intx().pin(2, InterruptPin::A);
    let line = &machine.lines[2];
    pin.set_level(true);
    pin.set_level(true);
    assert!(line.asserted());
    assert_eq!(read16(&*function, 0x06), 0x08);
    assert_eq!(read8(&*function, 0x07), 0);
    other.set_level(true);
    write16(&*function, COMMAND, 0x400);
    assert_eq!(read16(&*function, 0x06), 0x08, "shown though silenced");
    assert!(line.asserted(), "the other one");
    other.set_level(false);
    assert!(!line.asserted());
    write16(&*function, COMMAND, 0);
    assert!(line.asserted());
    drop(function);
    drop(pin);
    assert!(!line.asserted());
    assert_eq!(line.take_edges(), 2);
}

#[test]
fn saved_state_places_bars_again() {
    let machine = Machine::new();
    let bars = [(
        0,
        BarKind::Memory64 {
            prefetchable: false,
        },
        0x1000,
    )];
    let function = machine.function(&bars, Echo::new(1));
    function.write_config(BAR0, &0x12_3456_7000_u64.to_le_bytes());
    write16(&*function, COMMAND, COMMAND_MEMORY);
    let saved = function.save();
    drop(function);
    let mut mmio = machine.mmio.reader();
    assert_eq!(peek(&mut mmio, 0x12_3456_7000), None);
    let function = machine.function(&bars, Echo::new(2));
    function.restore(&saved).unwrap();
    assert_eq!(peek(&mut mmio, 0x12_3456_7000), Some(2));
    assert_eq!(function.save(), saved);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Snapshot bytes (CVE-2023-50711): what is accepted differs from the function only where the guest can write, and
    /// what is refused changes nothing.
    #[test]
    fn hostile_saved_state(
        changes in prop::collection::vec((0..4096_usize, any::<u8>()), 0..6),
        low in prop::collection::vec((0..0x100_usize, any::<u8>()), 0..4),
        length in prop_oneof![8 => Just(4096_usize), 1 => 0..8192_usize],
    ) {
        let machine = Machine::new();
        let function = full(&machine);
        let fresh = function.save();
        let mut state = fresh.clone();
        for (at, value) in changes.into_iter().chain(low) {
            state.registers[at] = value;
        }
        state.registers.resize(length, 0);
        let masks = masks();
        let legal = length == 4096 && (0..4096).all(|at| {
            let (writable, clearable) = masks[at];
            (state.registers[at] ^ fresh.registers[at]) & !(writable | clearable) == 0
        });
        match function.restore(&state) {
            Ok(()) => {
                prop_assert!(legal);
                prop_assert_eq!(function.save(), state);
            }
            Err(error) => {
                prop_assert!(!legal);
                prop_assert_eq!(length != 4096, matches!(error, ConfigStateError::Length(_)));
                prop_assert_eq!(function.save(), fresh);
            }
        }
        // And it goes on working.
        function.write_config(0, &[0xff; 4096]);
        function.reset();
    }
}

#[test]
fn state_survives_serialization() {
    let machine = Machine::new();
    let function = full(&machine);
    write16(&*function, COMMAND, 0x7);
    let text = serde_json::to_string(&function.save()).unwrap();
    let state: ConfigSpaceState = serde_json::from_str(&text).unwrap();
    assert_eq!(state, function.save());
}

/// Keeps the low byte at most 9, and unchanged while bit 8 is set.
struct Bounded;

impl CapabilityHandler for Bounded {
    fn constrain(&self, before: &[u8], after: &mut [u8]) {
        if after[4] > 9 || before[5] & 1 != 0 {
            after[4] = before[4];
        }
    }

    fn written(&self, _: &[u8], _: Range<usize>) {}
}

#[test]
fn a_handler_refuses_values_and_snapshots_that_hold_them() {
    let machine = Machine::new();
    let function = ConfigBuilder::endpoint(IDENTITY)
        .capability(
            Capability::extended(0xb, 1, 8)
                .writable(4, &[0xff, 1])
                .handler(Arc::new(Bounded)),
        )
        .build(&machine.decoder)
        .unwrap();
    for (written, read) in [
        (7, 7),
        (10, 7),
        (0x109, 0x109),
        (0x103, 0x109),
        (3, 9),
        (3, 3),
    ] {
        write16(&*function, 0x104, written);
        assert_eq!(read16(&*function, 0x104), read, "{written:#x}");
    }
    let mut saved = function.save();
    saved.registers[0x104] = 10;
    let before = function.save();
    assert_eq!(
        function.restore(&saved),
        Err(ConfigStateError::Unreachable { offset: 0x100 })
    );
    assert_eq!(function.save(), before);
    saved.registers[0x104] = 9;
    saved.registers[0x105] = 1;
    function.restore(&saved).unwrap();
    assert_eq!(read16(&*function, 0x104), 0x109);
}

#[test]
fn a_virtual_function_has_bus_master_enable_and_nothing_else_in_its_header() {
    let machine = Machine::new();
    let builder = || ConfigBuilder::virtual_function(IDENTITY);
    let function = builder().build(&machine.decoder).unwrap();
    for offset in (0..0x40).step_by(4) {
        let before = read32(&*function, offset);
        write32(&*function, offset, u32::MAX);
        let expected = if offset == COMMAND {
            COMMAND_BUS_MASTER.into()
        } else {
            before
        };
        assert_eq!(read32(&*function, offset), expected, "{offset:#x}");
    }
    let bar = Bar {
        kind: BarKind::Io,
        size: 4,
        name: "BAR".into(),
        device: Echo::new(0),
    };
    let error = builder().bar(0, bar).build(&machine.decoder).err();
    assert!(matches!(error, Some(ConfigError::BarIndex { index: 0 })));
}
