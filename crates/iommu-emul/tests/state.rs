//! Save, restore and reset.

mod support;

use iommu_emul::{
    spec::register::{Global, offset},
    vtd::{Access, Config, StateError, Unit, UnitState},
};
use proptest::prelude::*;
use support::{Guest, iotlb_global, legacy};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

fn restore(guest: &Guest, state: UnitState) -> Result<Guest, StateError> {
    let restored = Guest::new(guest.unit.capabilities().config().clone());
    let unit = Unit::restore(
        guest.unit.capabilities().clone(),
        guest.memory.clone(),
        restored.sink.clone(),
        state,
    )?;
    Ok(Guest {
        memory: guest.memory.clone(),
        unit,
        ..restored
    })
}

#[test]
fn a_restored_unit_translates_and_reads_the_same() {
    let guest = legacy();
    guest.map_page(0x5000, 0x6000);
    assert_eq!(guest.translate(&guest.view(), 0x9000, Access::Write), None);
    guest.submit_and_wait(&[iotlb_global()], 1);
    let restored = restore(&guest, guest.unit.save()).unwrap();
    for at in (0..0x240).step_by(8) {
        assert_eq!(restored.read64(at), guest.read64(at), "{at:#x}");
    }
    assert_eq!(
        restored.translate(&restored.view(), 0x5008, Access::Read),
        Some(0x6008)
    );
    assert_eq!(restored.unit.save(), guest.unit.save());
}

#[test]
fn a_wait_that_was_held_completes_on_restore() {
    let guest = legacy();
    guest.map_page(0x5000, 0x6000);
    let guard = guest.view().memory();
    let _: u64 = guard.read_obj(GuestAddress(0x5000)).unwrap();
    guest.submit_and_wait(&[iotlb_global()], 6);
    assert_eq!(guest.status(), 0);
    let state = guest.unit.save();
    let restored = restore(&guest, state).unwrap();
    assert_eq!(restored.status(), 6);
    assert_eq!(restored.read64(offset::IQH), restored.read64(offset::IQT));
}

#[test]
fn reset_is_as_new() {
    let guest = legacy();
    let guard = guest.view().memory();
    guest.submit_and_wait(&[iotlb_global()], 6);
    guest.unit.reset();
    assert_eq!(guest.unit.save(), Guest::new(Config::default()).unit.save());
    drop(guard);
    assert_eq!(guest.unit.save(), Guest::new(Config::default()).unit.save());
    assert_eq!(
        guest.translate(&guest.view(), 0x5000, Access::Read),
        Some(0x5000)
    );
}

#[test]
fn other_capabilities_are_refused() {
    let state = legacy().unit.save();
    let other = Guest::new(Config {
        caching_mode: true,
        ..Config::default()
    });
    assert!(matches!(
        restore(&other, state),
        Err(StateError::Capabilities { .. })
    ));
}

/// Each register with a bit that it cannot hold: CVE-2023-50711 and openvmm's `InvalidSavedState` are the class.
#[test]
fn impossible_registers_are_refused() {
    let guest = legacy();
    let good = serde_json::to_value(guest.unit.save()).unwrap();
    for (at, value) in [
        ("/status", 1_u64),
        ("/status", Global::WRITE_BUFFER_FLUSH.bits().into()),
        ("/root", 1),
        ("/root_latched", 1 << 60),
        ("/context", 1 << 40),
        ("/queue/head", 8),
        ("/queue/tail", 1 << 20),
        ("/queue/address", 1 << 50),
        ("/queue/completion", 2),
        ("/queue/event/control", 1),
        ("/faults/next", 1),
        ("/faults/first", 1),
        ("/faults/status", 2),
        ("/faults/event/data", 1 << 16),
        ("/interrupt_table", 1 << 4),
        ("/interrupt_table_latched", 1 << 4),
        ("/invalidate_address", 1 << 8),
        ("/iotlb", 1),
    ] {
        let mut bad = good.clone();
        *bad.pointer_mut(at).unwrap() = value.into();
        let state = serde_json::from_value(bad).unwrap();
        assert!(
            matches!(restore(&guest, state), Err(StateError::Register(_))),
            "{at}"
        );
    }
    let mut bad = good;
    *bad.pointer_mut("/faults/records").unwrap() = serde_json::json!([]);
    let state = serde_json::from_value(bad).unwrap();
    assert!(restore(&guest, state).is_err());
}

proptest! {
    /// Arbitrary numbers in a state never panic, and what is accepted works.
    #[test]
    fn hostile_states(changes in prop::collection::vec((0..20_usize, any::<u64>()), 1..6)) {
        let guest = legacy();
        let mut state = serde_json::to_value(guest.unit.save()).unwrap();
        let places = ["/status", "/root", "/root_latched", "/context", "/queue/head", "/queue/tail",
            "/queue/address", "/queue/completion", "/queue/error", "/faults/next", "/faults/first",
            "/faults/status", "/interrupt_table", "/interrupt_table_latched", "/invalidate_address",
            "/iotlb", "/queue/event/control", "/queue/event/address", "/faults/event/data", "/root"];
        for (place, value) in changes {
            let slot = state.pointer_mut(places[place]).unwrap();
            // As wide as the field, often with few bits.
            *slot = (value & 0xffff & (value >> 20)).into();
        }
        let Ok(state) = serde_json::from_value::<UnitState>(state) else { return Ok(()) };
        if let Ok(restored) = restore(&guest, state) {
            let view = restored.view();
            for at in [0, 0x5000, 0xfee0_0000, u64::MAX] {
                let _ = restored.translate(&view, at, Access::Write);
            }
            restored.submit_and_wait(&[iotlb_global()], 1);
            let again = restored.unit.save();
            prop_assert!(restore(&restored, again).is_ok());
        }
    }
}
