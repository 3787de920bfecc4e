//! Regions come, move and go; accesses find the right one, at the right offset, or none.
#![expect(clippy::unwrap_used, reason = "test code")]

use std::sync::{Arc, Mutex};

use pio_mmio_bus::bus::{AccessError, AddressSpace, Bus, BusDevice, BusError, Outcome, RegionId};

/// Reads give the offset plus a constant; remembers writes.
#[derive(Default)]
struct Recorder {
    tag: u8,
    writes: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl Recorder {
    fn new(tag: u8) -> Arc<Self> {
        Arc::new(Self {
            tag,
            ..Self::default()
        })
    }
}

impl BusDevice for Recorder {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let mut next = self.tag.wrapping_add(offset.to_le_bytes()[0]);
        for byte in data {
            *byte = next;
            next = next.wrapping_add(1);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        self.writes.lock().unwrap().push((offset, data.to_vec()));
        Ok(())
    }
}

fn read(bus: &Bus, address: u64, width: usize) -> (Outcome, Vec<u8>) {
    let mut data = vec![0x5a; width];
    let outcome = bus.reader().read(address, &mut data);
    (outcome, data)
}

#[test]
fn an_access_reaches_its_region_at_its_offset() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let low = Recorder::new(0x10);
    bus.insert(0x1000, 0x10, "low", low.clone()).unwrap();
    bus.insert(0x1010, 0x10, "high", Recorder::new(0x80))
        .unwrap();

    assert_eq!(
        read(&bus, 0x1004, 4),
        (Outcome::Done, vec![0x14, 0x15, 0x16, 0x17])
    );
    assert_eq!(read(&bus, 0x1010, 1), (Outcome::Done, vec![0x80]));
    assert_eq!(bus.reader().write(0x1008, &[1; 8]), Outcome::Done);
    assert_eq!(*low.writes.lock().unwrap(), [(8, vec![1; 8])]);
}

#[test]
fn unclaimed_addresses_read_all_ones_and_ignore_writes() {
    let bus = Bus::new(AddressSpace::Pio).unwrap();
    bus.insert(0x60, 4, "i8042", Recorder::new(0)).unwrap();
    for address in [0, 0x5f, 0x64, 0xffff, 0x10000, u64::MAX] {
        assert_eq!(read(&bus, address, 4), (Outcome::Unclaimed, vec![0xff; 4]));
        assert_eq!(bus.reader().write(address, &[0; 4]), Outcome::Unclaimed);
    }
}

#[test]
fn a_failed_read_gives_all_ones() {
    struct Deaf;
    impl BusDevice for Deaf {
        fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
            data.fill(7);
            Err(AccessError::NoRegister { offset })
        }
        fn write(&self, offset: u64, _: &[u8]) -> Result<(), AccessError> {
            Err(AccessError::NoRegister { offset })
        }
    }
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    bus.insert(0, 8, "deaf", Arc::new(Deaf)).unwrap();
    let failed = Outcome::Failed(AccessError::NoRegister { offset: 2 });
    assert_eq!(read(&bus, 2, 2), (failed.clone(), vec![0xff; 2]));
    assert_eq!(bus.reader().write(2, &[0]), failed);
}

#[test]
fn only_widths_1_2_4_and_8_reach_a_device() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let device = Recorder::new(0);
    bus.insert(0, 0x100, "device", device.clone()).unwrap();
    for width in 0..=64 {
        let expected = match width {
            1 | 2 | 4 | 8 => Outcome::Done,
            _ => Outcome::Failed(AccessError::Width { offset: 3, width }),
        };
        let (outcome, data) = read(&bus, 3, width);
        assert_eq!(outcome, expected);
        if expected != Outcome::Done {
            assert_eq!(data, vec![0xff; width]);
        }
        assert_eq!(bus.reader().write(3, &vec![0; width]), expected);
    }
    assert_eq!(device.writes.lock().unwrap().len(), 4);
}

#[test]
fn an_access_across_the_end_of_a_region_never_reaches_a_device() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let (first, second) = (Recorder::new(0), Recorder::new(0));
    bus.insert(0x100, 6, "first", first.clone()).unwrap();
    bus.insert(0x106, 6, "second", second.clone()).unwrap();
    let straddle = Outcome::Failed(AccessError::Straddle {
        offset: 4,
        width: 4,
    });
    assert_eq!(read(&bus, 0x104, 4), (straddle.clone(), vec![0xff; 4]));
    assert_eq!(bus.reader().write(0x104, &[0; 4]), straddle);
    assert!(first.writes.lock().unwrap().is_empty());
    assert!(second.writes.lock().unwrap().is_empty());
}

#[test]
fn an_overlap_is_refused_with_both_names() {
    let bus = Bus::new(AddressSpace::Pio).unwrap();
    let serial = bus.insert(0x3f8, 8, "serial", Recorder::new(1)).unwrap();
    let error = bus.insert(0x3ff, 2, "probe", Recorder::new(2)).unwrap_err();
    assert!(matches!(error, BusError::Overlap { .. }));
    assert_eq!(
        error.to_string(),
        r#""probe" (0x3ff..=0x400) overlaps "serial" (0x3f8..=0x3ff)"#
    );
    let probe = bus.insert(0x400, 2, "probe", Recorder::new(2)).unwrap();
    assert!(matches!(
        bus.relocate(serial, 0x3f9),
        Err(BusError::Overlap { .. })
    ));
    assert_eq!(read(&bus, 0x3f8, 1).0, Outcome::Done);
    let _ = bus.remove(probe).unwrap();
    bus.relocate(serial, 0x3f9).unwrap();
    assert_eq!(read(&bus, 0x3f8, 1).0, Outcome::Unclaimed);
}

/// Address plus length overflow (THREATS: CVE-2019-18960, Cloud Hypervisor #8232).
#[test]
fn ranges_at_the_top_of_the_address_space() {
    for space in [AddressSpace::Pio, AddressSpace::Mmio] {
        let bus = Bus::new(space).unwrap();
        let last = space.last();
        for (base, size) in [
            (last, 2),
            (last - 1, 3),
            (last, u64::MAX),
            (0, 0),
            (last, 0),
        ] {
            let result = bus.insert(base, size, "beyond", Recorder::new(0));
            assert!(
                matches!(result, Err(BusError::OutOfSpace { .. })),
                "{base:#x} {size:#x}"
            );
        }
        let all_but_one = bus
            .insert(1, last, "all but one", Recorder::new(0))
            .unwrap();
        assert_eq!(read(&bus, last, 1).0, Outcome::Done);
        bus.remove(all_but_one).unwrap().wait();

        let top = bus.insert(last - 7, 8, "top", Recorder::new(0)).unwrap();
        assert_eq!(read(&bus, last, 1), (Outcome::Done, vec![7]));
        assert_eq!(read(&bus, last - 7, 8).0, Outcome::Done);
        for width in [2, 4, 8] {
            let straddle = Outcome::Failed(AccessError::Straddle { offset: 7, width });
            assert_eq!(
                read(&bus, last, width),
                (straddle.clone(), vec![0xff; width])
            );
            assert_eq!(bus.reader().write(last, &vec![0; width]), straddle);
        }
        for base in [last - 6, last, u64::MAX] {
            assert!(matches!(
                bus.relocate(top, base),
                Err(BusError::OutOfSpace { .. })
            ));
        }
        assert_eq!(read(&bus, last, 1).0, Outcome::Done);
    }
}

#[test]
fn an_unmapped_region_keeps_its_identity() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let id = bus.insert_unmapped(0x10, "bar", Recorder::new(0)).unwrap();
    assert_eq!(read(&bus, 0, 1).0, Outcome::Unclaimed);
    bus.relocate(id, 0x2000).unwrap();
    assert_eq!(read(&bus, 0x2000, 1).0, Outcome::Done);
    bus.unmap(id).unwrap();
    assert_eq!(read(&bus, 0x2000, 1).0, Outcome::Unclaimed);
    bus.insert(0x2008, 1, "other", Recorder::new(0)).unwrap();
    assert!(matches!(
        bus.relocate(id, 0x2000),
        Err(BusError::Overlap { .. })
    ));
    bus.relocate(id, 0x3000).unwrap();
    assert_eq!(read(&bus, 0x300f, 1), (Outcome::Done, vec![15]));
}

#[test]
fn a_removed_region_is_gone_at_once_and_its_id_is_dead() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let device = Recorder::new(0);
    let id = bus.insert(0, 8, "device", device.clone()).unwrap();
    bus.remove(id).unwrap().wait();
    assert_eq!(Arc::strong_count(&device), 1);
    assert_eq!(read(&bus, 0, 1).0, Outcome::Unclaimed);
    let dead = |result: Result<(), BusError>| {
        assert!(matches!(result, Err(BusError::NoRegion(no)) if no == id));
    };
    dead(bus.remove(id).map(|_| ()));
    dead(bus.relocate(id, 0));
    dead(bus.unmap(id));
    let again: RegionId = bus.insert(0, 8, "device", device).unwrap();
    assert_ne!(again, id);
}
