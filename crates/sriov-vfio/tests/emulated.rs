//! The SR-IOV capability of our own, as a guest walks it, and the life of its virtual functions.

mod nic;

use std::sync::atomic::Ordering;

use nic::{DOORBELL, ECAM, IDENTITY, Machine, PORT, SRIOV, igb};
use pio_mmio_bus::pci::{BarKind, ConfigStateError, PciFunction, RequesterId};
use proptest::prelude::*;
use sriov_vfio::capability::SriovCapability;
use sriov_vfio::emulated::{Layout, LayoutError, VfBarLayout};
use sriov_vfio::spec::sriov::{
    CONTROL, Control, INITIAL_VFS, NUM_VFS, SYSTEM_PAGE_SIZE, TOTAL_VFS, VF_BAR0, VF_ID,
};

const ENABLE: u16 = Control::VF_ENABLE.bits();
const MEMORY: u16 = Control::MEMORY_ENABLE.bits();
const ARI: u16 = Control::ARI_CAPABLE_HIERARCHY.bits();

fn vendor(machine: &Machine, id: RequesterId) -> u16 {
    let mut bytes = [0; 2];
    let Some(function) = machine.root.bus().find(id) else {
        return 0;
    };
    function.read_config(0, &mut bytes);
    u16::from_le_bytes(bytes)
}

#[test]
fn functions_appear_and_disappear_with_vf_enable() {
    let machine = Machine::new(igb());
    let ids = [(0x10, 0), (0x10, 2), (0x10, 4)]
        .map(|(device, function)| RequesterId::new(1, RequesterId::devfn_of(device, function)));
    for round in 1..=2 {
        machine.write16(NUM_VFS, 2);
        assert!(machine.numbers().is_empty());
        machine.write16(CONTROL, ENABLE | MEMORY | ARI);
        assert_eq!(machine.numbers(), [0, 1]);
        assert_eq!(ids.map(|id| vendor(&machine, id)), [VF_ID, VF_ID, 0]);
        assert_eq!(machine.made.created.load(Ordering::Relaxed), 2 * round);
        machine.write16(CONTROL, 0);
        assert_eq!(ids.map(|id| vendor(&machine, id)), [0; 3]);
        assert_eq!(machine.made.alive.load(Ordering::Relaxed), 0);
    }
}

#[test]
fn the_capability_reads_back_as_its_layout() {
    let machine = Machine::new(igb());
    let mut config = vec![0; 4096];
    machine.physical.read_config(0, &mut config);
    let found = SriovCapability::find(&config).unwrap().unwrap();
    assert_eq!(found.offset(), SRIOV);
    assert_eq!((found.total_vfs(), found.vf_device_id()), (8, 0x10ca));
    let id = |index| found.vf_requester(RequesterId::new(1, 0), index).unwrap();
    machine.write16(NUM_VFS, 8);
    machine.write16(CONTROL, ENABLE);
    for index in 0..8 {
        assert_eq!(vendor(&machine, id(index)), VF_ID, "{index}");
    }
}

/// CVE-2024-26327: QEMU registered as many functions as NumVFs said, behind the end of an array of TotalVFs.
#[test]
fn num_vfs_above_total_vfs_enables_nothing() {
    for wanted in [9, 0x100, 0x7fff, 0xffff] {
        let machine = Machine::new(igb());
        machine.write16(NUM_VFS, wanted);
        machine.write16(CONTROL, ENABLE | MEMORY);
        assert_eq!(machine.read16(CONTROL), MEMORY, "{wanted:#x}");
        assert!(machine.numbers().is_empty());
        // It can be put right.
        machine.write16(NUM_VFS, 8);
        machine.write16(CONTROL, ENABLE | MEMORY);
        assert_eq!(machine.numbers().len(), 8);
    }
}

/// CVE-2024-26328: QEMU took NumVFs at its word while functions existed, and freed others than it had made.
#[test]
fn num_vfs_stays_while_vf_enable_is_set() {
    let machine = Machine::new(igb());
    machine.write16(NUM_VFS, 3);
    machine.write16(CONTROL, ENABLE);
    for written in [0, 1, 8, 9, 0xffff] {
        machine.write16(NUM_VFS, written);
        assert_eq!(machine.read16(NUM_VFS), 3);
        machine.write(NUM_VFS, &[0xff]);
        machine.write(NUM_VFS + 1, &[0xff]);
        assert_eq!(machine.read16(NUM_VFS), 3);
        assert_eq!(machine.numbers(), [0, 1, 2]);
    }
    machine.write16(CONTROL, 0);
    machine.write16(NUM_VFS, 1);
    machine.write16(CONTROL, ENABLE);
    assert_eq!(machine.numbers(), [0]);
}

/// CVE-2025-54567: QEMU's mask of VF Enable did not follow NumVFs, so that it could be set where it must not.
#[test]
fn vf_enable_is_decided_anew_at_each_write() {
    let machine = Machine::new(igb());
    let enable = || {
        machine.write16(CONTROL, ENABLE);
        machine.read16(CONTROL) & ENABLE != 0
    };
    machine.write16(NUM_VFS, 2);
    assert!(enable());
    machine.write16(CONTROL, 0);
    machine.write16(NUM_VFS, 9);
    assert!(!enable());
    // One byte at a time: 0x0009, then 0x0100.
    machine.write16(NUM_VFS, 8);
    machine.write(NUM_VFS + 1, &[1]);
    assert!(!enable());
    machine.write(NUM_VFS + 1, &[0]);
    assert!(enable());
    machine.physical.reset();
    assert_eq!((machine.read16(CONTROL), machine.read16(NUM_VFS)), (0, 0));
    machine.write16(NUM_VFS, 9);
    assert!(!enable());
    // Reserved bits and migration, which the device does not have, stay 0.
    machine.write16(NUM_VFS, 1);
    machine.write16(CONTROL, 0xffff);
    assert_eq!(machine.read16(CONTROL), ENABLE | MEMORY | ARI);
}

#[test]
fn page_size_and_ari_stay_while_vf_enable_is_set() {
    let machine = Machine::new(igb());
    for (written, read) in [(2, 2), (4, 2), (3, 2), (0, 2), (0x400, 0x400), (1, 1)] {
        machine.write32(SYSTEM_PAGE_SIZE, written);
        assert_eq!(machine.read32(SYSTEM_PAGE_SIZE), read, "{written:#x}");
    }
    machine.write16(NUM_VFS, 1);
    machine.write16(CONTROL, ENABLE | ARI);
    machine.write32(SYSTEM_PAGE_SIZE, 0x10);
    assert_eq!(machine.read32(SYSTEM_PAGE_SIZE), 1);
    machine.write16(CONTROL, ENABLE);
    assert_eq!(machine.read16(CONTROL), ENABLE | ARI);
    machine.write16(CONTROL, 0);
    assert_eq!(machine.read16(CONTROL), 0);
}

#[test]
fn shares_of_the_bars_follow_memory_enable_base_and_page_size() {
    let mut machine = Machine::new(igb());
    machine.write16(NUM_VFS, 3);
    machine.write32(VF_BAR0, u32::MAX);
    assert_eq!(machine.read32(VF_BAR0), 0xffff_c00c);
    machine.write32(VF_BAR0, 0xe000_0000);
    machine.write32(VF_BAR0 + 4, 0x1);
    machine.write32(VF_BAR0 + 12, 0xd000_0000);
    machine.write16(CONTROL, ENABLE);
    assert_eq!(machine.peek(0x1_e000_0000), None);
    machine.write16(CONTROL, ENABLE | MEMORY);
    for n in 0..3_u8 {
        assert_eq!(machine.peek(0x1_e000_0000 + u64::from(n) * 0x4000), Some(n));
    }
    assert_eq!(machine.peek(0x1_e000_c000), None);
    // Moved while in use.
    machine.write32(VF_BAR0 + 4, 0x2);
    assert_eq!(
        (machine.peek(0x1_e000_4000), machine.peek(0x2_e000_4000)),
        (None, Some(1))
    );
    machine.write16(CONTROL, ENABLE);
    assert_eq!(machine.peek(0x2_e000_4000), None);
    machine.write16(CONTROL, MEMORY);
    assert_eq!(machine.peek(0x2_e000_4000), None);
    // Pages of 64 KiB put the shares further apart.
    machine.write32(SYSTEM_PAGE_SIZE, 0x10);
    machine.write32(VF_BAR0, u32::MAX);
    assert_eq!(machine.read32(VF_BAR0), 0xffff_000c);
    machine.write32(VF_BAR0, 0xe000_0000);
    machine.write16(CONTROL, ENABLE | MEMORY);
    assert_eq!(
        (machine.peek(0x2_e000_4000), machine.peek(0x2_e001_0000)),
        (None, Some(1))
    );
    // At the top of the address space there is room for some.
    machine.write32(VF_BAR0, 0xfffe_0000);
    machine.write32(VF_BAR0 + 4, u32::MAX);
    assert_eq!(machine.peek(0xffff_ffff_ffff_0000), Some(1));
    assert_eq!(machine.peek(0), None);
}

#[test]
fn doorbells_ring_where_the_share_is() {
    let mut machine = Machine::new(igb());
    machine.write16(NUM_VFS, 2);
    machine.write32(VF_BAR0, 0xe000_0000);
    machine.write16(CONTROL, ENABLE | MEMORY);
    let second = 0xe000_4000 + DOORBELL;
    let _ = machine.mmio.write(second, &[1, 0]);
    assert_eq!(machine.made.rung.read().ok(), Some(1));
    machine.write32(VF_BAR0, 0xd000_0000);
    let _ = machine.mmio.write(second, &[1, 0]);
    assert!(machine.made.rung.read().is_err());
    let _ = machine.mmio.write(0xd000_0000 + DOORBELL, &[1, 0]);
    assert_eq!(machine.made.rung.read().ok(), Some(1));
    machine.write16(CONTROL, 0);
    let _ = machine.mmio.write(0xd000_0000 + DOORBELL, &[1, 0]);
    assert!(machine.made.rung.read().is_err());
}

/// The bus itself is in use then, and keeps what was removed from it until it changes again.
#[test]
fn what_a_function_uses_ends_with_the_write_that_disables_it() {
    let mut machine = Machine::new(igb());
    machine.write16(NUM_VFS, 2);
    machine.write32(VF_BAR0, 0xe000_0000);
    machine.write16(CONTROL, ENABLE | MEMORY);
    assert_eq!(machine.peek(0xe000_4000), Some(1));
    assert_eq!(machine.made.devices.load(Ordering::Relaxed), 4);
    let control = ECAM + 0x10_0000 + u64::from(SRIOV) + u64::try_from(CONTROL).unwrap();
    let _ = machine.mmio.write(control, &[0, 0]);
    assert_eq!(machine.made.devices.load(Ordering::Relaxed), 0);
    assert_eq!(machine.peek(0xe000_4000), None);
}

#[test]
fn requester_ids_follow_bus_numbers_and_reach_the_next_bus() {
    let layout = Layout {
        total_vfs: 3,
        first_vf_offset: 0xff,
        vf_stride: 1,
        ..igb()
    };
    let machine = Machine::new(layout);
    machine.write16(NUM_VFS, 3);
    machine.write16(CONTROL, ENABLE | ARI);
    let there = |bus: u8, devfn: u8| vendor(&machine, RequesterId::new(bus, devfn)) == VF_ID;
    assert!(there(1, 0xff) && there(2, 0) && there(2, 1) && !there(2, 2));
    machine.number_bus(7, 8);
    assert!(there(7, 0xff) && there(8, 0) && !there(2, 0));
    // Behind the last bus there is nothing, and nothing wraps to bus 0.
    machine.number_bus(255, 255);
    assert!(there(255, 0xff) && !there(0, 0) && !there(0, 1));
    assert_eq!(machine.numbers().len(), 3);
}

#[test]
fn without_ari_forwarding_functions_above_seven_are_not_found() {
    let machine = Machine::new(Layout {
        total_vfs: 9,
        first_vf_offset: 1,
        vf_stride: 1,
        ..igb()
    });
    machine.write16(NUM_VFS, 9);
    machine.write16(CONTROL, ENABLE);
    machine
        .root
        .write_config(PORT, 0x40 + 0x28, &0_u16.to_le_bytes());
    let found = (1..10).filter(|&devfn| vendor(&machine, RequesterId::new(1, devfn)) == VF_ID);
    assert_eq!(found.count(), 7);
}

#[test]
fn a_reset_of_the_function_or_the_bus_ends_its_virtual_functions() {
    let resets: [fn(&Machine); 4] = [
        |machine| machine.physical.reset(),
        // Function-level reset: device control of the express capability.
        |machine| {
            machine
                .physical
                .write_config(0x48, &0x8000_u16.to_le_bytes())
        },
        |machine| {
            machine
                .root
                .write_config(PORT, 0x3e, &0x40_u16.to_le_bytes());
        },
        |machine| drop(machine.port.bus().remove(0)),
    ];
    for reset in resets {
        let machine = Machine::new(igb());
        machine.write16(NUM_VFS, 2);
        machine.write16(CONTROL, ENABLE | MEMORY);
        reset(&machine);
        assert!(machine.numbers().is_empty());
        assert_eq!(machine.made.alive.load(Ordering::Relaxed), 0);
        assert_eq!(machine.read16(CONTROL), 0);
    }
}

#[test]
fn a_function_that_cannot_be_made_is_missing_and_the_others_are_there() {
    let machine = Machine::new(igb());
    machine.made.refused.lock().unwrap().push(1);
    machine.write16(NUM_VFS, 3);
    machine.write16(CONTROL, ENABLE);
    assert_eq!(machine.numbers(), [0, 2]);
    let missing: Vec<_> = machine
        .physical
        .missing()
        .into_iter()
        .map(|(index, error)| (index, error.to_string()))
        .collect();
    assert_eq!(missing, [(1, "no cable for 1".to_owned())]);
    assert_eq!(vendor(&machine, RequesterId::new(1, 0x82)), 0);
    machine.write16(CONTROL, 0);
    assert!(machine.physical.missing().is_empty());
}

#[test]
fn functions_send_through_the_port_and_only_with_a_requester_id() {
    let layout = Layout {
        total_vfs: 3,
        first_vf_offset: 0xff,
        vf_stride: 1,
        ..igb()
    };
    let machine = Machine::new(layout);
    machine.write16(NUM_VFS, 3);
    machine.write16(CONTROL, ENABLE | ARI);
    let forwarded = || Vec::from_iter(machine.made.forwarded.lock().unwrap().clone());
    assert!(forwarded().is_empty());
    machine.root.write_config(PORT, 4, &4_u16.to_le_bytes());
    assert_eq!(forwarded(), [0, 1, 2]);
    // The second one would be at 256:00.0.
    machine.number_bus(255, 255);
    assert_eq!(forwarded(), [0]);
}

#[test]
fn bus_mastering_of_each_function_is_its_own() {
    let machine = Machine::new(igb());
    machine.write16(NUM_VFS, 1);
    machine.write16(CONTROL, ENABLE);
    let id = RequesterId::new(1, 0x80);
    machine.root.write_config(id, 4, &0xffff_u16.to_le_bytes());
    let mut command = [0; 2];
    machine.root.read_config(id, 4, &mut command);
    assert_eq!(u16::from_le_bytes(command), 4);
    machine
        .root
        .read_config(RequesterId::new(1, 0), 4, &mut command);
    assert_eq!(u16::from_le_bytes(command), 0);
}

#[test]
fn saved_registers_bring_the_functions_back() {
    let machine = Machine::new(igb());
    machine.write32(VF_BAR0, 0xe000_0000);
    machine.write16(NUM_VFS, 2);
    machine.write16(CONTROL, ENABLE | MEMORY | ARI);
    let saved = machine.physical.save();
    let mut other = Machine::new(igb());
    other.write16(NUM_VFS, 5);
    other.write16(CONTROL, ENABLE);
    other.physical.restore(&saved).unwrap();
    assert_eq!(other.numbers(), [0, 1]);
    assert_eq!(other.peek(0xe000_4000), Some(1));
    assert_eq!(other.physical.save(), saved);
    let disabled = Machine::new(igb()).physical.save();
    other.physical.restore(&disabled).unwrap();
    assert!(other.numbers().is_empty());
}

#[test]
fn a_hostile_snapshot_is_refused_and_changes_nothing() {
    let machine = Machine::new(igb());
    machine.write16(NUM_VFS, 2);
    machine.write16(CONTROL, ENABLE);
    let before = machine.physical.save();
    // NumVFs, control, the page size, the low bits of a BAR.
    for (offset, bytes) in [
        (NUM_VFS, &[9][..]),
        (NUM_VFS + 1, &[0xff]),
        (CONTROL, &[0x03]),
        (SYSTEM_PAGE_SIZE, &[3]),
        (SYSTEM_PAGE_SIZE, &[0]),
        (VF_BAR0 + 1, &[0x20]),
        (INITIAL_VFS, &[9]),
        (TOTAL_VFS, &[9]),
    ] {
        let mut hostile = before.clone();
        let at = usize::from(SRIOV) + offset;
        hostile
            .registers
            .splice(at..at + bytes.len(), bytes.iter().copied());
        let error = machine.physical.restore(&hostile).unwrap_err();
        assert!(
            matches!(
                error,
                ConfigStateError::Unreachable { .. } | ConfigStateError::ReadOnly { .. }
            ),
            "{error}"
        );
        assert_eq!(
            (machine.physical.save(), machine.numbers()),
            (before.clone(), vec![0, 1])
        );
    }
}

#[test]
fn layouts_that_cannot_be() {
    let bar = VfBarLayout {
        index: 0,
        kind: BarKind::Memory64 {
            prefetchable: false,
        },
        size: 0x1000,
    };
    let with = |bars: &[VfBarLayout]| Layout {
        bars: bars.to_vec(),
        ..igb()
    };
    assert_eq!(
        Layout {
            total_vfs: 0,
            ..igb()
        }
        .check(),
        Err(LayoutError::NoVfs)
    );
    assert_eq!(
        Layout {
            supported_page_sizes: 1,
            ..igb()
        }
        .check(),
        Err(LayoutError::PageSizes(1))
    );
    for (offset, stride, total) in [(0, 1, 1), (1, 0, 2), (0x80, 0x8000, 3), (0xffff, 1, 2)] {
        let layout = Layout {
            first_vf_offset: offset,
            vf_stride: stride,
            total_vfs: total,
            ..igb()
        };
        assert!(
            matches!(layout.check(), Err(LayoutError::Requesters(_))),
            "{layout:?}"
        );
    }
    for bars in [
        &[VfBarLayout {
            kind: BarKind::Io,
            ..bar
        }][..],
        &[VfBarLayout {
            size: 0x1001,
            ..bar
        }],
        &[VfBarLayout { index: 5, ..bar }],
        &[VfBarLayout {
            index: usize::MAX,
            ..bar
        }],
        &[bar, VfBarLayout { index: 1, ..bar }],
    ] {
        assert!(
            matches!(with(bars).check(), Err(LayoutError::Bar(_))),
            "{bars:?}"
        );
    }
    assert_eq!(
        with(&[bar, VfBarLayout { index: 4, ..bar }]).check(),
        Ok(())
    );
}

/// Two vCPUs: one switches the functions on and off, the other renumbers the bus and switches the port's bus mastering. Nothing
/// hangs, and in the end the functions are where the registers say.
#[test]
fn enabling_races_with_renumbering() {
    let machine = Machine::new(igb());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..300_u16 {
                machine.write16(NUM_VFS, round % 9);
                machine.write16(CONTROL, ENABLE | MEMORY);
                machine.write16(CONTROL, 0);
            }
            machine.write16(NUM_VFS, 2);
            machine.write16(CONTROL, ENABLE);
        });
        scope.spawn(|| {
            for round in 0..300_u16 {
                let [bus, ..] = (round % 100 + 1).to_le_bytes();
                machine.number_bus(bus, bus);
                machine
                    .root
                    .write_config(PORT, 4, &(round % 2 * 4).to_le_bytes());
                let _ = vendor(&machine, RequesterId::new(bus, 0x80));
            }
            machine.number_bus(9, 9);
        });
    });
    assert_eq!(vendor(&machine, RequesterId::new(9, 0x82)), VF_ID);
    assert_eq!(vendor(&machine, RequesterId::new(9, 0)), IDENTITY.vendor);
}

/// The capability as a few variables.
#[derive(Debug, Default)]
struct Model {
    enabled: bool,
    rest: u16,
    num_vfs: u16,
    page: u32,
}

impl Model {
    fn control(&mut self, value: u16) {
        let ari = if self.enabled && value & ENABLE != 0 {
            self.rest & ARI
        } else {
            value & ARI
        };
        self.rest = value & MEMORY | ari;
        self.enabled = value & ENABLE != 0 && self.num_vfs <= 8;
    }

    fn num_vfs(&mut self, value: u16) {
        if !self.enabled {
            self.num_vfs = value;
        }
    }

    fn page(&mut self, value: u32) {
        let value = value & 0x553;
        if !self.enabled && value.count_ones() == 1 {
            self.page = value;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any writes, of whole registers and of bytes, against a model.
    #[test]
    fn walks_agree_with_a_model(writes in prop::collection::vec((0..6_usize, any::<u16>()), 1..40)) {
        let machine = Machine::new(igb());
        let mut model = Model { page: 1, ..Model::default() };
        for (what, value) in writes {
            let [low, high] = value.to_le_bytes();
            match what {
                0 => {
                    machine.write16(CONTROL, value);
                    model.control(value);
                }
                1 => {
                    machine.write16(NUM_VFS, value % 12);
                    model.num_vfs(value % 12);
                }
                2 => {
                    machine.write(NUM_VFS, &[low]);
                    model.num_vfs(model.num_vfs & 0xff00 | u16::from(low));
                }
                3 => {
                    machine.write(NUM_VFS + 1, &[high & 1]);
                    model.num_vfs(model.num_vfs & 0xff | u16::from(high & 1) << 8);
                }
                4 => {
                    machine.write(CONTROL, &[low]);
                    model.control(u16::from(low));
                }
                _ => {
                    let value = 1 << (value % 13) | u32::from(value & 0x8000);
                    machine.write32(SYSTEM_PAGE_SIZE, value);
                    model.page(value);
                }
            }
            let enable = if model.enabled { ENABLE } else { 0 };
            prop_assert_eq!(machine.read16(CONTROL), model.rest | enable);
            prop_assert_eq!(machine.read16(NUM_VFS), model.num_vfs);
            prop_assert_eq!(machine.read32(SYSTEM_PAGE_SIZE), model.page);
            let alive = if model.enabled { usize::from(model.num_vfs) } else { 0 };
            prop_assert_eq!(machine.made.alive.load(Ordering::Relaxed), alive);
        }
    }

    /// A snapshot with changed bytes does no harm, and what it makes satisfies the rules.
    #[test]
    fn changed_snapshots_are_refused_or_good(changes in prop::collection::vec((0..0x40_usize, any::<u8>()), 1..6)) {
        let machine = Machine::new(igb());
        machine.write16(NUM_VFS, 2);
        machine.write16(CONTROL, ENABLE);
        let mut state = machine.physical.save();
        for (offset, value) in changes {
            if let Some(byte) = state.registers.get_mut(usize::from(SRIOV) + offset) {
                *byte = value;
            }
        }
        if machine.physical.restore(&state).is_ok() {
            let enabled = machine.read16(CONTROL) & ENABLE != 0;
            let wanted = if enabled { machine.read16(NUM_VFS) } else { 0 };
            prop_assert!(wanted <= 8);
            prop_assert_eq!(machine.numbers().len(), usize::from(wanted));
        }
    }
}
