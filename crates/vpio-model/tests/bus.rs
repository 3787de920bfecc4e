//! Devices as regions of a bus.

#![cfg(feature = "bus")]
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use std::sync::{Arc, Mutex};

use common::{SIZE, parse};
use pio_mmio_bus::bus::{AccessError, AddressSpace, Bus, BusDevice, Direction, Outcome};
use vpio_model::arbiter::{InputPolicy, Sharing};
use vpio_model::bus::{DenialSink, Region, Shared};
use vpio_model::engine::{At, Denied, Engine, Passthrough, Translation};
use vpio_model::in_process::{Memory, Registers};
use vpio_model::language::Access;
use vpio_model::models;

fn engine(text: &str) -> Engine<Arc<Memory>> {
    let model = Arc::new(parse(text));
    let shadow = usize::try_from(model.shadow_bytes()).unwrap();
    let translation = Translation::Identity { size: SIZE };
    Engine::new(
        model,
        Arc::new(Memory::new(1 << 20, translation, shadow, 1 << 32)),
    )
}

struct Nothing;

impl BusDevice for Nothing {
    fn read(&self, _offset: u64, _data: &mut [u8]) -> Result<(), AccessError> {
        Ok(())
    }

    fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), AccessError> {
        Ok(())
    }
}

#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl DenialSink for Log {
    fn denied(&self, at: At, _access: Access, denied: &Denied) {
        self.0
            .lock()
            .unwrap()
            .push(format!("{:#x}: {denied}", at.offset));
    }
}

#[test]
fn a_denied_access_is_as_where_there_is_no_device() {
    let card = Arc::new(Registers::default());
    let device = Passthrough::new(engine(models::RTL8139), card.clone());
    let log = Arc::new(Log::default());
    let region = Region::new(Arc::new(Mutex::new(device)), 0, log.clone());
    let bus = Bus::new(AddressSpace::Pio).unwrap();
    bus.insert(0xc000, 256, "card", Arc::new(region)).unwrap();
    let mut vcpu = bus.reader();
    assert_eq!(vcpu.write(0xc048, &[1, 0, 0, 0]), Outcome::Done);
    assert_eq!(card.get(0, 0x48), Some(1));
    assert_eq!(vcpu.write(0xc020, &[0, 0, 0x10, 0]), Outcome::Done);
    assert!(matches!(
        vcpu.write(0xc010, &[60, 0, 0, 0]),
        Outcome::Failed(_)
    ));
    assert_eq!(card.get(0, 0x10), None);
    let mut data = [0; 4];
    assert!(matches!(vcpu.read(0xc0f0, &mut data), Outcome::Failed(_)));
    assert_eq!(data, [0xff; 4]);
    let log = log.0.lock().unwrap();
    assert_eq!(log.len(), 2, "{log:?}");
    assert!(log[0].starts_with("0x10: transfer `tx_dma[0]`"), "{log:?}");
}

/// What is free both ways is the device's alone; everything else fares as it does in one piece.
#[test]
fn free_ranges_lead_to_the_device() {
    for (path, text) in models::ALL {
        let buses = [false, true].map(|apart| {
            let card = Arc::new(Registers::default());
            let device = Passthrough::new(engine(text), card.clone());
            let size = device.engine().model().spaces()[0].size;
            let region = Region::new(Arc::new(Mutex::new(device)), 0, Arc::new(()));
            let bus = Bus::new(AddressSpace::Mmio).unwrap();
            if apart {
                region.insert(&bus, 0x10_0000, "card").unwrap();
            } else {
                let region = Arc::new(region);
                bus.insert(0x10_0000, size, "card", region).unwrap();
            }
            (bus, card, size)
        });
        let size = buses[0].2;
        let [mut whole, mut apart] = [&buses[0].0, &buses[1].0].map(Bus::reader);
        for width in [1, 2, 4, 8] {
            for offset in (0..=size).step_by(width) {
                let address = 0x10_0000 + offset;
                let data = &[0x21, 0, 0, 0, 0, 0, 0, 0][..width];
                let outcomes = [whole.write(address, data), apart.write(address, data)];
                let is_done = outcomes.map(|outcome| outcome == Outcome::Done);
                assert_eq!(is_done[0], is_done[1], "{path}: write {offset:#x}:{width}");
                let mut values = [[0; 8]; 2];
                let outcomes = [
                    whole.read(address, &mut values[0][..width]),
                    apart.read(address, &mut values[1][..width]),
                ];
                let is_done = outcomes.map(|outcome| outcome == Outcome::Done);
                assert_eq!(is_done[0], is_done[1], "{path}: read {offset:#x}:{width}");
                assert_eq!(values[0], values[1], "{path}: read {offset:#x}:{width}");
                assert_eq!(buses[0].1.get(0, offset), buses[1].1.get(0, offset));
            }
        }
    }
}

#[test]
fn a_data_port_does_not_wait_for_the_model() {
    let card = Arc::new(Registers::default());
    let device = Passthrough::new(engine(models::NE2000), card.clone());
    let device = Arc::new(Mutex::new(device));
    let region = Region::new(device.clone(), 0, Arc::new(()));
    let bus = Bus::new(AddressSpace::Pio).unwrap();
    let parts = region.insert(&bus, 0x300, "card").unwrap();
    assert_eq!(parts.len(), 3, "what is before it and behind it, too");
    let held = device.lock().unwrap();
    let mut vcpu = bus.reader();
    assert_eq!(vcpu.write(0x310, &[1, 2]), Outcome::Done);
    assert_eq!(card.get(0, 0x10), Some(0x201));
    let mut data = [0; 2];
    assert_eq!(vcpu.read(0x310, &mut data), Outcome::Done);
    assert_eq!(data, [1, 2]);

    // Where there is something else already, nothing is left.
    let other = Bus::new(AddressSpace::Pio).unwrap();
    other.insert(0x31f, 1, "other", Arc::new(Nothing)).unwrap();
    drop(held);
    let region = Region::new(device, 0, Arc::new(()));
    assert!(region.insert(&other, 0x300, "card").is_err());
    assert_eq!(other.reader().write(0x310, &[1, 2]), Outcome::Unclaimed);
}

#[test]
fn who_has_no_turn_is_suspended_until_it_has() {
    let card = Arc::new(Registers::default());
    let sharing = Sharing {
        quantum: 10,
        patience: 1000,
        input: InputPolicy::Drop,
    };
    let shared = Shared::new(card, sharing);
    let mut vcpus = [(), ()].map(|()| {
        let port = Arc::new(shared.add(engine(models::PIIX_BMIDE)).unwrap());
        let bus = Bus::new(AddressSpace::Pio).unwrap();
        let region = bus
            .insert(0xc000, 16, "ide", Arc::new(port.region(0)))
            .unwrap();
        bus.add_hook(region, 0..16, Direction::Both, port).unwrap();
        bus.reader()
    });
    assert_eq!(vcpus[0].write(0xc004, &[0; 4]), Outcome::Done);
    let Outcome::Suspended(suspension) = vcpus[1].write(0xc004, &[0; 4]) else {
        panic!("the other guest has the device");
    };
    assert!(suspension.eventfd().read().is_err());
    shared.with(|arbiter| {
        arbiter.tick(1);
        arbiter.tick(11);
    });
    assert_eq!(suspension.eventfd().read().unwrap(), 1);
    assert_eq!(vcpus[1].write(0xc004, &[0; 4]), Outcome::Done);
}
