//! The registers: reset values, reserved and read-only fields, widths, faults and their event (VT-d §7.3, §7.4, §11).

mod support;

use iommu_emul::{
    spec::register::{Global, offset},
    vtd::{Access, Config},
};
use pio_mmio_bus::bus::{AccessError, BusDevice};
use proptest::prelude::*;
use support::{Guest, legacy};

const FRCD: u16 = 0x220;
const PFO: u32 = 1;
const PPF: u32 = 2;
const IQE: u32 = 1 << 4;

#[test]
fn reset_values() {
    let guest = Guest::new(Config::default());
    assert_eq!(guest.read32(offset::VER), 0x10);
    for at in (0x18..0x1000).step_by(4) {
        let masked = [offset::FECTL, offset::IECTL].contains(&at);
        let expected = if masked { 1 << 31 } else { 0 };
        assert_eq!(guest.read32(at), expected, "{at:#x}");
    }
}

/// What remains of all ones, register by register: reserved and read-only bits are not writable.
#[test]
fn writable_bits() {
    let guest = Guest::new(Config::default());
    for (at, writable) in [
        (offset::CAP, 0),
        (offset::RTADDR, 0x0000_ffff_ffff_f000),
        (offset::FEADDR, 0xffff_ffff_ffff_fffc),
        (offset::IEADDR, 0xffff_ffff_ffff_fffc),
        (offset::IQH, 0),
        (offset::IQT, 0x7_fff0),
        (offset::IQA, 0x0000_ffff_ffff_f807),
        (offset::IRTA, 0x0000_ffff_ffff_f80f),
        (offset::IQERCD, 0),
        (0xf0, 0),
        (FRCD, 0),
        (FRCD + 8, 0),
        (0x800, 0),
    ] {
        let before = guest.read64(at);
        guest.write64(at, u64::MAX);
        let fixed = if at == offset::CAP { before } else { 0 };
        assert_eq!(guest.read64(at), writable | fixed, "{at:#x}");
        guest.write64(at, 0);
        assert_eq!(guest.read64(at), fixed, "{at:#x}");
    }
    for (at, writable) in [
        (offset::VER, 0x10),
        (offset::GSTS, 0),
        (offset::FSTS, 0),
        (offset::FECTL, 1 << 31),
        (offset::FEDATA, 0xffff),
        (offset::ICS, 0),
        (offset::IECTL, 1 << 31),
    ] {
        guest.write32(at, u32::MAX);
        assert_eq!(guest.read32(at), writable, "{at:#x}");
    }
    let without = Guest::new(Config {
        extended_interrupts: false,
        ..Config::default()
    });
    without.write64(offset::FEADDR, u64::MAX);
    assert_eq!(without.read64(offset::FEADDR), 0xffff_fffc);
    without.write64(offset::IRTA, u64::MAX);
    assert_eq!(without.read64(offset::IRTA), 0x0000_ffff_ffff_f00f);
    let scalable = Guest::new(Config {
        scalable: true,
        ..Config::default()
    });
    scalable.write64(offset::RTADDR, u64::MAX);
    assert_eq!(scalable.read64(offset::RTADDR), 0x0000_ffff_ffff_fc00);
}

#[test]
fn halves_of_a_register_are_written_apart() {
    let guest = Guest::new(Config::default());
    guest.write32(offset::RTADDR + 4, 0x12);
    guest.write32(offset::RTADDR, 0x3456_7000);
    assert_eq!(guest.read64(offset::RTADDR), 0x12_3456_7000);
    assert_eq!(guest.read32(offset::RTADDR + 4), 0x12);
    // A command runs when the half that holds it is written.
    guest.write32(offset::CCMD, 0x1234_5678);
    assert_eq!(
        guest.read32(offset::CCMD),
        0x5678,
        "the source is write-only"
    );
    guest.write32(offset::CCMD + 4, 1 << 31 | 1 << 29);
    assert_eq!(guest.read32(offset::CCMD + 4), 1 << 29 | 1 << 27);
}

#[test]
fn odd_widths_are_refused() {
    let guest = Guest::new(Config::default());
    for at in 0..0x20_u64 {
        for width in 1..=8_usize {
            let defined = (width == 4 && at % 4 == 0) || (width == 8 && at % 8 == 0);
            let mut bytes = [0; 8];
            let read = guest.unit.read(at, &mut bytes[..width]);
            let write = guest.unit.write(at, &bytes[..width]);
            if defined {
                assert_eq!((read, write), (Ok(()), Ok(())));
            } else {
                let refused = Err(AccessError::Width { offset: at, width });
                assert_eq!((read, write), (refused, refused));
            }
        }
    }
    let beyond = 0x1_0000;
    assert_eq!(
        guest.unit.read(beyond, &mut [0; 4]),
        Err(AccessError::NoRegister { offset: beyond })
    );
}

#[test]
fn faults_fill_the_records_and_overflow() {
    let guest = Guest::new(Config {
        fault_records: 2,
        ..Config::default()
    });
    guest.context(support::CONTEXT.0, support::CONTEXT.1);
    guest.start(0);
    let view = guest.view();
    let fault = |at| assert_eq!(guest.translate(&view, at, Access::Write), None);
    let record = |i: u16| (guest.read64(FRCD + 16 * i), guest.read64(FRCD + 16 * i + 8));
    fault(0x1abc);
    assert_eq!(guest.read32(offset::FSTS), PPF);
    assert_eq!(record(0), (0x1000, 1 << 63 | 5 << 32 | 0x0113));
    fault(0x2000);
    assert_eq!(guest.read32(offset::FSTS), PPF);
    fault(0x3000);
    assert_eq!(guest.read32(offset::FSTS), PPF | PFO);
    // Recording stops until the overflow is cleared.
    guest.write32(FRCD + 12, 1 << 31);
    fault(0x4000);
    assert_eq!(record(0).1 >> 63, 0);
    guest.write32(offset::FSTS, PFO);
    assert_eq!(guest.read32(offset::FSTS), PPF);
    assert_eq!(guest.translate(&view, 0x5000, Access::Read), None);
    assert_eq!(record(0), (0x5000, 1 << 63 | 1 << 62 | 6 << 32 | 0x0113));
    guest.write32(FRCD + 12, 1 << 31);
    guest.write32(FRCD + 16 + 12, 1 << 31);
    assert_eq!(guest.read32(offset::FSTS), 0);
    // FRI tells where the first of the new faults is.
    fault(0x6000);
    assert_eq!(guest.read32(offset::FSTS), PPF | 1 << 8);
}

#[test]
fn the_fault_event_is_sent_once_for_faults_that_pend_together() {
    let guest = Guest::new(Config {
        fault_records: 4,
        ..Config::default()
    });
    guest.context(support::CONTEXT.0, support::CONTEXT.1);
    guest.start(0);
    guest.write32(offset::FEDATA, 0x31);
    guest.write64(offset::FEADDR, 0x0000_0100_fee0_2000);
    let view = guest.view();
    let fault = || assert_eq!(guest.translate(&view, 0, Access::Write), None);
    fault();
    assert_eq!(guest.read32(offset::FECTL), 0xc000_0000);
    guest.write32(offset::FECTL, 0);
    let sent = guest.messages();
    assert_eq!(
        (sent[0].address, sent[0].data),
        (0x0000_0100_fee0_2000, 0x31)
    );
    assert_eq!(guest.read32(offset::FECTL), 0);
    fault();
    guest.submit(&[[0, 0]]);
    assert_eq!(guest.read32(offset::FSTS), PPF | IQE);
    assert!(guest.messages().is_empty());
    for i in 0..2 {
        guest.write32(FRCD + 16 * i + 12, 1 << 31);
    }
    guest.write32(offset::FSTS, IQE);
    assert_eq!(
        guest.read32(offset::FSTS) & 0xff,
        IQE,
        "the queue met the same descriptor again"
    );
    assert_eq!(guest.messages().len(), 1);

    // A pending message goes with what it told of.
    let guest = legacy();
    assert_eq!(guest.translate(&guest.view(), 0, Access::Write), None);
    assert_eq!(guest.read32(offset::FECTL), 0xc000_0000);
    guest.write32(FRCD + 12, 1 << 31);
    assert_eq!(guest.read32(offset::FECTL), 0x8000_0000);
}

#[test]
fn commands_show_in_the_status() {
    let guest = Guest::new(Config::default());
    let status = || Global::from_bits_retain(guest.read32(offset::GSTS));
    for command in [
        Global::ROOT_TABLE_POINTER,
        Global::INTERRUPT_TABLE_POINTER,
        Global::QUEUED_INVALIDATION,
        Global::INTERRUPT_REMAPPING,
        Global::COMPATIBILITY_FORMAT,
        Global::TRANSLATION,
    ] {
        guest.command(command);
        assert!(status().contains(command));
    }
    guest.write32(offset::GCMD, Global::WRITE_BUFFER_FLUSH.bits());
    let one_shot = Global::ROOT_TABLE_POINTER | Global::INTERRUPT_TABLE_POINTER;
    assert_eq!(status(), one_shot);

    let without = Guest::new(Config {
        interrupt_remapping: false,
        extended_interrupts: false,
        ..Config::default()
    });
    without.write32(offset::GCMD, u32::MAX);
    let status = Global::from_bits_retain(without.read32(offset::GSTS));
    assert!(!status.intersects(Global::INTERRUPT_REMAPPING | Global::INTERRUPT_TABLE_POINTER));
}

proptest! {
    /// Whatever is written where, the unit lives, and what it reads can be saved and restored.
    #[test]
    fn random_programs(accesses in prop::collection::vec((0..0x240_u16, any::<u64>(), any::<bool>()), 1..200)) {
        let guest = Guest::new(Config { fault_records: 2, scalable: true, ..Config::default() });
        let view = guest.view();
        for (at, value, wide) in accesses {
            if wide {
                guest.write64(at & !7, value);
            } else {
                let [a, b, c, d, ..] = value.to_le_bytes();
                guest.write32(at & !3, u32::from_le_bytes([a, b, c, d]));
            }
            let _ = guest.translate(&view, value, Access::Write);
        }
        let state = guest.unit.save();
        let restored = iommu_emul::vtd::Unit::restore(
            guest.unit.capabilities().clone(),
            guest.memory.clone(),
            guest.sink.clone(),
            state.clone(),
        );
        prop_assert_eq!(restored.unwrap().save(), state);
    }
}
