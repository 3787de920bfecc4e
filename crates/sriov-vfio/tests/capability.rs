//! The SR-IOV capability from the bytes of a configuration space, with good bytes, changed bytes and noise.
#![expect(clippy::unwrap_used, reason = "test code")]

use pio_mmio_bus::pci::{BarKind, RequesterId};
use proptest::prelude::*;
use sriov_vfio::capability::{CapabilityError, ExtendedCapabilities, SriovCapability, VfBar};
use sriov_vfio::spec::sriov::{self, Control, Header, Registers};
use zerocopy::{FromZeros, IntoBytes};

/// What an 82576 has: 8 functions, 0x80 after the physical one, 2 apart, two 64-bit BARs.
fn registers() -> Registers {
    let mut registers = Registers::new_zeroed();
    registers.header = Header::new(sriov::ID, 1, 0).0.into();
    registers.initial_vfs = 8.into();
    registers.total_vfs = 8.into();
    registers.first_vf_offset = 0x80.into();
    registers.vf_stride = 2.into();
    registers.vf_device_id = 0x10ca.into();
    registers.supported_page_sizes = sriov::MANDATORY_PAGE_SIZES.into();
    registers.system_page_size = 1.into();
    registers.vf_bars = [0xfe00_000c_u32, 0x1, 0, 0xfd00_000c, 0x2, 0].map(Into::into);
    registers
}

/// A configuration space with another capability at 0x100 and SR-IOV at `offset`.
fn config(offset: u16, registers: &Registers) -> Vec<u8> {
    let mut config = vec![0; 4096];
    put(
        &mut config,
        0x100,
        &Header::new(0x000e, 1, offset).0.to_le_bytes(),
    );
    put(&mut config, offset.into(), registers.as_bytes());
    config
}

fn put(config: &mut [u8], offset: usize, bytes: &[u8]) {
    config
        .get_mut(offset..offset + bytes.len())
        .unwrap()
        .copy_from_slice(bytes);
}

#[test]
fn the_capability_of_an_82576() {
    let found = SriovCapability::find(&config(0x160, &registers()))
        .unwrap()
        .unwrap();
    assert_eq!(found.offset(), 0x160);
    assert_eq!(
        (found.total_vfs(), found.enabled_vfs(), found.vf_device_id()),
        (8, 0, 0x10ca)
    );
    assert_eq!(found.system_page_size(), Ok(4096));
    let physical = RequesterId::new(1, 0);
    let ids: Vec<String> = (0..3)
        .map(|n| found.vf_requester(physical, n).unwrap().to_string())
        .collect();
    assert_eq!(ids, ["01:10.0", "01:10.2", "01:10.4"]);
    let kind = BarKind::Memory64 { prefetchable: true };
    assert_eq!(
        found.vf_bars(),
        Ok(vec![
            (
                0,
                VfBar {
                    kind,
                    base: 0x1_fe00_0000
                }
            ),
            (
                3,
                VfBar {
                    kind,
                    base: 0x2_fd00_0000
                }
            )
        ])
    );
    let (_, bar) = found.vf_bars().unwrap().remove(0);
    assert_eq!(bar.address(7, 0x4000), Ok(0x1_fe01_c000));
}

#[test]
fn enabled_functions_are_no_more_than_there_can_be() {
    let mut registers = registers();
    registers.num_vfs = 500.into();
    let found = |registers| {
        SriovCapability::find(&config(0x160, &registers))
            .unwrap()
            .unwrap()
    };
    assert_eq!(found(registers).enabled_vfs(), 0);
    registers.control = Control::VF_ENABLE.bits().into();
    assert_eq!(found(registers).enabled_vfs(), 8);
    assert_eq!(
        found(registers).vf_requester(RequesterId::new(1, 0), 8),
        Err(CapabilityError::NoSuchVf { index: 8, total: 8 })
    );
}

#[test]
fn no_capability_is_found_where_there_is_none() {
    for config in [
        vec![],
        vec![0; 64],
        vec![0; 256],
        vec![0; 4096],
        vec![0xff; 4096],
    ] {
        assert_eq!(SriovCapability::find(&config), Ok(None));
    }
    let mut other = vec![0; 4096];
    put(
        &mut other,
        0x100,
        &Header::new(0x000e, 1, 0).0.to_le_bytes(),
    );
    assert_eq!(SriovCapability::find(&other), Ok(None));
}

#[test]
fn a_list_that_loops_points_back_or_ends_early_is_an_error() {
    let mut looping = vec![0; 4096];
    put(
        &mut looping,
        0x100,
        &Header::new(0x000e, 1, 0x140).0.to_le_bytes(),
    );
    put(
        &mut looping,
        0x140,
        &Header::new(0x000d, 1, 0x100).0.to_le_bytes(),
    );
    assert!(matches!(
        SriovCapability::find(&looping),
        Err(CapabilityError::Loop { .. })
    ));
    let mut back = vec![0; 4096];
    put(
        &mut back,
        0x100,
        &Header::new(0x000e, 1, 0x40).0.to_le_bytes(),
    );
    assert_eq!(
        SriovCapability::find(&back),
        Err(CapabilityError::Pointer {
            from: 0x100,
            to: 0x40
        })
    );
    let short = config(0x160, &registers());
    for length in [0x161, 0x164, 0x19f] {
        assert_eq!(
            SriovCapability::find(short.get(..length).unwrap()),
            Err(CapabilityError::Truncated {
                offset: 0x160,
                length
            })
        );
    }
    assert!(
        SriovCapability::find(short.get(..0x1a0).unwrap())
            .unwrap()
            .is_some()
    );
}

#[test]
fn reserved_kinds_of_bar_and_a_64_bit_one_without_upper_half_are_errors() {
    for (index, value) in [(0, 0x1), (0, 0x2), (0, 0x6), (5, 0xfe00_0004)] {
        let mut registers = registers();
        registers.vf_bars = [0; 6].map(Into::into);
        *registers.vf_bars.get_mut(index).unwrap() = value.into();
        let found = SriovCapability::find(&config(0x160, &registers))
            .unwrap()
            .unwrap();
        assert_eq!(found.vf_bars(), Err(CapabilityError::Bar { index, value }));
    }
}

#[test]
fn a_system_page_size_is_one_supported_bit() {
    for (system, size) in [
        (0, None),
        (3, None),
        (2, Some(8192)),
        (4, None),
        (0x400, Some(4 << 20)),
    ] {
        let mut registers = registers();
        registers.system_page_size = system.into();
        let found = SriovCapability::find(&config(0x160, &registers))
            .unwrap()
            .unwrap();
        assert_eq!(found.system_page_size().ok(), size, "{system:#x}");
    }
}

proptest! {
    /// Requester IDs against a count in wide integers; the bus number takes the carry.
    #[test]
    fn requester_ids_carry_into_the_bus_number(
        physical in any::<u16>(), offset in any::<u16>(), stride in any::<u16>(), total in any::<u16>(), index in any::<u16>(),
    ) {
        let mut registers = registers();
        registers.total_vfs = total.into();
        registers.first_vf_offset = offset.into();
        registers.vf_stride = stride.into();
        let found = SriovCapability::find(&config(0x160, &registers)).unwrap().unwrap();
        let wide = u64::from(physical) + u64::from(offset) + u64::from(stride) * u64::from(index);
        let result = found.vf_requester(RequesterId(physical), index);
        if index < total && offset != 0 && (stride != 0 || index == 0) && wide <= 0xffff {
            let id = result.unwrap();
            prop_assert_eq!(u64::from(id.bus()), wide >> 8);
            prop_assert_eq!(u64::from(id.devfn()), wide & 0xff);
        } else {
            prop_assert!(result.is_err());
        }
    }

    /// Shares of a BAR lie side by side, and never past the end of what the BAR can address.
    #[test]
    fn shares_of_a_bar_do_not_overlap(base in any::<u64>(), shift in 0_u32..64, index in any::<u16>(), wide in any::<bool>()) {
        let size = 1_u64 << shift;
        let kind = if wide { BarKind::Memory64 { prefetchable: true } } else { BarKind::Memory32 { prefetchable: false } };
        let base = if wide { base } else { base & 0xffff_ffff };
        for base in [base, base & !(size - 1)] {
            let bar = VfBar { kind, base };
            let first = u128::from(base) + u128::from(size) * u128::from(index);
            let limit = if wide { 1 << 64 } else { 1_u128 << 32 };
            let good = kind.allows(size) && base % size == 0 && first + u128::from(size) <= limit;
            prop_assert_eq!(bar.address(index, size).ok().map(u128::from), good.then_some(first));
        }
    }

    /// Whatever the bytes: no panic, an end, and nothing that is not there.
    #[test]
    fn noise_is_refused_or_understood(mut bytes in prop::collection::vec(any::<u8>(), 0..4096), links in prop::collection::vec((0x40_u16..0x400, 0_u16..0x400), 0..20)) {
        for (at, next) in links {
            let header = Header::new(if next & 1 == 0 { sriov::ID } else { 0x000d }, 1, next * 4).0.to_le_bytes();
            if let Some(place) = bytes.get_mut(usize::from(at) * 4..).and_then(|rest| rest.get_mut(..4)) {
                place.copy_from_slice(&header);
            }
        }
        prop_assert!(ExtendedCapabilities::new(&bytes).count() <= 961);
        if let Ok(Some(found)) = SriovCapability::find(&bytes) {
            prop_assert!(usize::from(found.offset()) + sriov::LENGTH <= bytes.len());
            prop_assert!(found.enabled_vfs() <= found.total_vfs());
            let _ = (found.vf_bars(), found.system_page_size(), found.vf_requester(RequesterId(0x100), 3));
        }
    }
}
