//! Doorbells signal an eventfd instead of calling the device, through a binder or by the bus.
#![expect(clippy::unwrap_used, reason = "test code")]

use std::io;
use std::sync::{Arc, Mutex};

use pio_mmio_bus::bus::{
    Access, AccessError, AddressSpace, Bus, BusDevice, BusError, Direction, Doorbell,
    DoorbellAddress, DoorbellBinder, Hook, Outcome, Verdict,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Remembers what was written.
#[derive(Default)]
struct Device(Mutex<Vec<(u64, Vec<u8>)>>);

impl Device {
    fn take(&self) -> Vec<(u64, Vec<u8>)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl BusDevice for Device {
    fn read(&self, _: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(0);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.0.lock().unwrap().push((offset, data.to_vec()));
        Ok(())
    }
}

/// Takes every doorbell unless told not to.
#[derive(Default)]
struct Binder {
    bound: Mutex<Vec<DoorbellAddress>>,
    full: Mutex<bool>,
    asked: Mutex<u32>,
}

impl DoorbellBinder for Binder {
    fn bind(&self, address: &DoorbellAddress, _: &EventFd) -> io::Result<()> {
        *self.asked.lock().unwrap() += 1;
        if *self.full.lock().unwrap() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.bound.lock().unwrap().push(*address);
        Ok(())
    }

    fn unbind(&self, address: &DoorbellAddress, _: &EventFd) {
        let mut bound = self.bound.lock().unwrap();
        let index = bound.iter().position(|other| other == address).unwrap();
        bound.remove(index);
    }
}

impl Binder {
    fn addresses(&self) -> Vec<u64> {
        self.bound
            .lock()
            .unwrap()
            .iter()
            .map(|bound| bound.address)
            .collect()
    }
}

fn eventfd() -> Arc<EventFd> {
    Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())
}

fn doorbell(width: Option<u8>, datamatch: Option<u64>) -> Doorbell {
    Doorbell {
        width,
        datamatch,
        needs_value: false,
        eventfd: eventfd(),
    }
}

/// How often it was rung since it was last asked.
fn rung(doorbell: &Doorbell) -> u64 {
    doorbell.eventfd.read().unwrap_or(0)
}

#[test]
fn the_bus_rings_a_doorbell_that_nobody_bound() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let device = Arc::new(Device::default());
    let region = bus.insert(0x1000, 0x100, "notify", device.clone()).unwrap();
    let (any, word, three, seven) = (
        doorbell(None, None),
        doorbell(Some(2), None),
        doorbell(Some(4), Some(3)),
        doorbell(Some(4), Some(7)),
    );
    for (offset, doorbell) in [(0, &any), (0x10, &word), (0x50, &three), (0x50, &seven)] {
        bus.add_doorbell(region, offset, doorbell.clone()).unwrap();
    }
    let mut reader = bus.reader();

    for width in [1, 2, 4, 8] {
        assert_eq!(reader.write(0x1000, &[0xee; 8][..width]), Outcome::Done);
    }
    assert_eq!(rung(&any), 4);
    assert_eq!(reader.write(0x1010, &[1, 0]), Outcome::Done);
    assert_eq!(rung(&word), 1);
    assert_eq!(reader.write(0x1050, &7_u32.to_le_bytes()), Outcome::Done);
    assert_eq!((rung(&three), rung(&seven)), (0, 1));
    assert_eq!(device.take(), []);

    // Another width, another value, another offset, a write across it, a read: the device's business.
    let misses: [(u64, &[u8]); 5] = [
        (0x10, &[1]),
        (0x50, &[8, 0, 0, 0]),
        (0x50, &[7]),
        (0x52, &[7, 0]),
        (0x4e, &[0; 8]),
    ];
    for (offset, data) in misses {
        assert_eq!(reader.write(0x1000 + offset, data), Outcome::Done);
        assert_eq!(device.take(), [(offset, data.to_vec())]);
    }
    assert_eq!(reader.read(0x1000, &mut [0; 4]), Outcome::Done);
    assert_eq!(
        (rung(&any), rung(&word), rung(&three), rung(&seven)),
        (0, 0, 0, 0)
    );
}

#[test]
fn a_removed_doorbell_gives_its_writes_back_to_the_device() {
    let bus = Bus::new(AddressSpace::Pio).unwrap();
    let device = Arc::new(Device::default());
    let region = bus.insert(0, 8, "device", device.clone()).unwrap();
    let bell = doorbell(Some(1), None);
    let id = bus.add_doorbell(region, 3, bell.clone()).unwrap();
    bus.remove_doorbell(id).unwrap().wait();
    assert_eq!(bus.reader().write(3, &[9]), Outcome::Done);
    assert_eq!((rung(&bell), device.take()), (0, vec![(3, vec![9])]));
    assert!(matches!(bus.remove_doorbell(id), Err(BusError::NoDoorbell(no)) if no == id));
}

#[test]
fn a_doorbell_that_needs_the_value_stays_with_the_device() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let binder = Arc::new(Binder::default());
    bus.set_doorbell_binder(Some(binder.clone())).unwrap();
    let device = Arc::new(Device::default());
    let region = bus.insert(0, 8, "device", device.clone()).unwrap();
    let bell = Doorbell {
        needs_value: true,
        ..doorbell(Some(4), None)
    };
    bus.add_doorbell(region, 0, bell.clone()).unwrap();
    assert_eq!(bus.reader().write(0, &[1, 2, 3, 4]), Outcome::Done);
    assert_eq!(
        (rung(&bell), device.take()),
        (0, vec![(0, vec![1, 2, 3, 4])])
    );
    assert_eq!(binder.addresses(), []);
}

#[test]
fn a_binder_has_the_doorbells_where_they_are() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let region = bus
        .insert_unmapped(0x100, "bar", Arc::new(Device::default()))
        .unwrap();
    bus.add_doorbell(region, 0x10, doorbell(None, None))
        .unwrap();
    let binder = Arc::new(Binder::default());
    bus.set_doorbell_binder(Some(binder.clone())).unwrap();
    assert_eq!(binder.addresses(), []);

    bus.relocate(region, 0x2000).unwrap();
    let second = bus
        .add_doorbell(region, 0x20, doorbell(Some(2), Some(5)))
        .unwrap();
    assert_eq!(
        *binder.bound.lock().unwrap(),
        [
            DoorbellAddress {
                space: AddressSpace::Mmio,
                address: 0x2010,
                width: None,
                datamatch: None
            },
            DoorbellAddress {
                space: AddressSpace::Mmio,
                address: 0x2020,
                width: Some(2),
                datamatch: Some(5)
            },
        ]
    );
    bus.relocate(region, 0x3000).unwrap();
    assert_eq!(binder.addresses(), [0x3010, 0x3020]);
    bus.unmap(region).unwrap();
    assert_eq!(binder.addresses(), []);
    bus.relocate(region, 0x4000).unwrap();
    let _ = bus.remove_doorbell(second).unwrap();
    assert_eq!(binder.addresses(), [0x4010]);

    let other = Arc::new(Binder::default());
    bus.set_doorbell_binder(Some(other.clone())).unwrap();
    assert_eq!(
        (binder.addresses(), other.addresses()),
        (vec![], vec![0x4010])
    );
    let _ = bus.remove(region).unwrap();
    assert_eq!(other.addresses(), []);
    // Nothing is bound again when nothing changed for it.
    assert_eq!(*other.asked.lock().unwrap(), 1);
}

#[test]
fn what_a_binder_does_not_take_is_an_error_and_the_bus_rings_it() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let binder = Arc::new(Binder::default());
    bus.set_doorbell_binder(Some(binder.clone())).unwrap();
    let device = Arc::new(Device::default());
    let region = bus.insert(0x1000, 0x10, "device", device.clone()).unwrap();
    let bell = doorbell(None, None);
    let id = bus.add_doorbell(region, 0, bell.clone()).unwrap();
    *binder.full.lock().unwrap() = true;

    let refused = |result| matches!(result, Err(BusError::Bind { .. }));
    assert!(refused(
        bus.add_doorbell(region, 8, doorbell(None, None))
            .map(|_| ())
    ));
    assert_eq!(bus.reader().write(0x1008, &[1]), Outcome::Done);
    assert_eq!(device.take(), [(8, vec![1])], "nothing was added");

    assert!(refused(bus.relocate(region, 0x2000)));
    assert_eq!(bus.reader().write(0x2000, &[1]), Outcome::Done);
    assert_eq!(rung(&bell), 1, "the region has moved, and the bus rings");
    // An unrelated change does not ask again, so it does not fail either.
    bus.insert(0, 1, "other", device).unwrap();
    *binder.full.lock().unwrap() = false;
    bus.relocate(region, 0x3000).unwrap();
    assert_eq!(binder.addresses(), [0x3000]);
    bus.remove_doorbell(id).unwrap().wait();
    assert_eq!(binder.addresses(), []);
}

#[test]
fn a_watched_doorbell_is_taken_back_from_the_binder() {
    struct Deny;
    impl Hook for Deny {
        fn before(&self, _: &Access<'_>) -> Verdict {
            Verdict::Deny
        }
    }
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let binder = Arc::new(Binder::default());
    bus.set_doorbell_binder(Some(binder.clone())).unwrap();
    let region = bus
        .insert(0, 0x10, "device", Arc::new(Device::default()))
        .unwrap();
    let bell = doorbell(Some(4), None);
    bus.add_doorbell(region, 4, bell.clone()).unwrap();

    bus.add_hook(region, 4..8, Direction::Reads, Arc::new(Deny))
        .unwrap();
    bus.add_hook(region, 8..9, Direction::Writes, Arc::new(Deny))
        .unwrap();
    assert_eq!(binder.addresses(), [4], "neither of these sees its writes");
    let hook = bus
        .add_hook(region, 7..9, Direction::Both, Arc::new(Deny))
        .unwrap();
    assert_eq!(binder.addresses(), []);
    assert!(matches!(
        bus.reader().write(4, &[0; 4]),
        Outcome::Failed(AccessError::Denied { .. })
    ));
    assert_eq!(rung(&bell), 0);
    let _ = bus.remove_hook(hook).unwrap();
    assert_eq!(binder.addresses(), [4]);
}

#[test]
fn doorbells_that_cannot_work_are_refused() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let region = bus
        .insert(0, 8, "device", Arc::new(Device::default()))
        .unwrap();
    for (width, datamatch) in [
        (Some(0), None),
        (Some(3), None),
        (Some(16), None),
        (Some(1), Some(0x100)),
        (Some(4), Some(1 << 32)),
        (None, Some(1)),
    ] {
        let result = bus.add_doorbell(region, 0, doorbell(width, datamatch));
        assert!(
            matches!(result, Err(BusError::SilentDoorbell(_))),
            "{width:?} {datamatch:?}"
        );
    }
    for (offset, width) in [(5, Some(4)), (8, None), (u64::MAX, Some(8))] {
        let result = bus.add_doorbell(region, offset, doorbell(width, None));
        assert!(matches!(result, Err(BusError::NotInRegion { .. })));
    }
    bus.add_doorbell(region, 0, doorbell(Some(2), Some(1)))
        .unwrap();
    bus.add_doorbell(region, 0, doorbell(Some(2), Some(2)))
        .unwrap();
    bus.add_doorbell(region, 0, doorbell(Some(4), None))
        .unwrap();
    for (width, datamatch) in [
        (Some(2), Some(1)),
        (Some(2), None),
        (None, None),
        (Some(4), Some(1)),
    ] {
        let result = bus.add_doorbell(region, 0, doorbell(width, datamatch));
        assert!(
            matches!(result, Err(BusError::DoorbellTaken { .. })),
            "{width:?} {datamatch:?}"
        );
    }
}

#[test]
fn a_full_eventfd_neither_blocks_nor_fails_the_write() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let region = bus
        .insert(0, 8, "device", Arc::new(Device::default()))
        .unwrap();
    let bell = doorbell(None, None);
    bell.eventfd.write(u64::MAX - 1).unwrap();
    bus.add_doorbell(region, 0, bell).unwrap();
    assert_eq!(bus.reader().write(0, &[0]), Outcome::Done);
}
