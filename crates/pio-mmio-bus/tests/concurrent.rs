//! Accesses, moves and removals at the same time, and from inside an access.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, Weak};
use std::thread;

use pio_mmio_bus::bus::{
    AccessError, AddressSpace, Bus, BusDevice, BusReader, Outcome, RegionId, Retired, WeakBus,
};

/// What a device does when its register is written.
type Action = Box<dyn Fn(u64) + Send + Sync>;

struct Device(Action);

impl BusDevice for Device {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.copy_from_slice(&offset.to_le_bytes()[..data.len()]);
        Ok(())
    }

    fn write(&self, _: u64, data: &[u8]) -> Result<(), AccessError> {
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        (self.0)(u64::from_le_bytes(value));
        Ok(())
    }
}

/// A device that knows its own region only after it has been inserted.
fn insert(
    bus: &Bus,
    base: u64,
    action: impl Fn(&Bus, RegionId, u64) + Send + Sync + 'static,
) -> RegionId {
    let id = Arc::new(Mutex::new(None));
    let (own, on) = (Arc::clone(&id), bus.downgrade());
    let device = Device(Box::new(move |value| {
        let region = own.lock().unwrap().unwrap();
        action(&on.upgrade().unwrap(), region, value);
    }));
    let region = bus.insert(base, 0x100, "device", Arc::new(device)).unwrap();
    *id.lock().unwrap() = Some(region);
    region
}

fn write(reader: &mut BusReader, address: u64, value: u64) {
    assert_eq!(reader.write(address, &value.to_le_bytes()), Outcome::Done);
}

/// A device moves its own BAR during its own access (THREATS: Firecracker #6088).
#[test]
fn a_device_moves_itself_during_its_own_access() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    insert(&bus, 0x1000, |bus, own, to| bus.relocate(own, to).unwrap());
    let mut reader = bus.reader();
    let mut at = 0x1000;
    for to in [0x8000, 0x1080, 0x1000, 0x1010, u64::MAX - 0xff, 0] {
        write(&mut reader, at + 0x20, to);
        let mut data = [0; 4];
        assert_eq!(reader.read(to + 0x44, &mut data), Outcome::Done);
        assert_eq!(data, 0x44_u32.to_le_bytes());
        at = to;
    }
}

/// Elements of a string access follow the device that moves.
#[test]
fn the_rest_of_a_string_goes_where_the_first_element_sent_the_device() {
    let bus = Bus::new(AddressSpace::Pio).unwrap();
    insert(&bus, 0x1000, |bus, own, to| bus.relocate(own, to).unwrap());
    let result = bus
        .reader()
        .write_string(0x1000, 2, &[0, 0x20, 0, 0x30, 0, 0x40]);
    assert_eq!((result.elements, result.outcome), (3, Outcome::Unclaimed));
    assert_eq!(bus.reader().read(0x2000, &mut [0]), Outcome::Done);
}

#[test]
fn a_device_removes_itself_and_is_alive_until_the_access_ends() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let retired: Arc<Mutex<Option<Retired>>> = Arc::default();
    let token = Arc::clone(&retired);
    insert(&bus, 0, move |bus, own, _| {
        let mut reader = bus.reader();
        let removed = bus.remove(own).unwrap();
        assert!(!removed.is_done(), "we are still in here");
        assert_eq!(reader.read(0, &mut [0]), Outcome::Unclaimed);
        // Later writers must not free it either.
        for base in [0, 0x1000] {
            insert(bus, base, |_, _, _| {});
        }
        *token.lock().unwrap() = Some(removed);
    });
    let mut reader = bus.reader();
    write(&mut reader, 0, 0);
    let retired = retired.lock().unwrap().take().unwrap();
    assert!(retired.is_done());
    retired.wait();
    assert_eq!(
        reader.read(0, &mut [0]),
        Outcome::Done,
        "the one that was inserted"
    );
}

/// Both are inside an access when each removes the device that the other is in.
#[test]
fn two_vcpus_remove_each_others_device_without_deadlock() {
    for _ in 0..50 {
        let bus = Bus::new(AddressSpace::Mmio).unwrap();
        let inside = Arc::new(Barrier::new(2));
        let victims: Arc<Mutex<Vec<RegionId>>> = Arc::default();
        let tokens: Arc<Mutex<Vec<Retired>>> = Arc::default();
        for number in 0..2 {
            let inside = Arc::clone(&inside);
            let (from, to) = (Arc::clone(&victims), Arc::clone(&tokens));
            let id = insert(&bus, number * 0x1000, move |bus, own, _| {
                inside.wait();
                let other = from.lock().unwrap().iter().copied().find(|id| *id != own);
                let removed = bus.remove(other.unwrap()).unwrap();
                to.lock().unwrap().push(removed);
                inside.wait();
            });
            victims.lock().unwrap().push(id);
        }
        thread::scope(|scope| {
            for number in 0..2 {
                let (bus, tokens) = (&bus, &tokens);
                scope.spawn(move || {
                    let mut reader = bus.reader();
                    write(&mut reader, number * 0x1000, 0);
                    let token = tokens.lock().unwrap().pop().unwrap();
                    token.wait();
                    assert_eq!(reader.read(0, &mut [0]), Outcome::Unclaimed);
                    assert_eq!(reader.read(0x1000, &mut [0]), Outcome::Unclaimed);
                });
            }
        });
    }
}

/// A device whose drop uses the bus, as one that owns other regions does.
#[test]
fn a_removed_device_may_use_the_bus_while_it_is_dropped() {
    struct Owner(Bus, Option<RegionId>);
    impl BusDevice for Owner {
        fn read(&self, _: u64, _: &mut [u8]) -> Result<(), AccessError> {
            Ok(())
        }
        fn write(&self, _: u64, _: &[u8]) -> Result<(), AccessError> {
            Ok(())
        }
    }
    impl Drop for Owner {
        fn drop(&mut self) {
            if let Some(id) = self.1 {
                self.0.remove(id).unwrap().wait();
            }
        }
    }
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let mut last = None;
    for base in 0..10 {
        last = Some(
            bus.insert(base, 1, "owner", Arc::new(Owner(bus.clone(), last)))
                .unwrap(),
        );
    }
    bus.remove(last.unwrap()).unwrap().wait();
    for base in 0..10 {
        assert_eq!(bus.reader().read(base, &mut [0]), Outcome::Unclaimed);
    }
}

/// A device's DMA that targets its own registers (THREATS: CVE-2024-3446). Nothing in [`BusDevice`] leads back to the bus: a
/// device's view of memory is not made of it. One that is handed a reader all the same re-enters without
/// deadlock, and the table it came from stays.
#[test]
fn dma_reentrancy_into_the_own_registers_neither_deadlocks_nor_frees_the_device() {
    struct Dma {
        bus: WeakBus,
        reader: Mutex<Option<BusReader>>,
        own: Mutex<Option<RegionId>>,
        depth: AtomicU64,
    }
    impl BusDevice for Dma {
        fn read(&self, _: u64, data: &mut [u8]) -> Result<(), AccessError> {
            data.fill(0x77);
            Ok(())
        }
        fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
            self.depth.fetch_add(1, Ordering::Relaxed);
            // Whoever comes back while the reader is in use finds none: the engine is busy.
            let reader = self.reader.lock().unwrap().take();
            let mut reader = reader.ok_or(AccessError::NoRegister { offset })?;
            let mut status = [0; 4];
            assert_eq!(reader.read(0x1000, &mut status), Outcome::Done);
            assert_eq!(status, [0x77; 4]);
            assert!(matches!(
                reader.write(0x1000 + offset, data),
                Outcome::Failed(_)
            ));
            let own = self.own.lock().unwrap().take().unwrap();
            let bus = self.bus.upgrade().unwrap();
            assert!(!bus.remove(own).unwrap().is_done());
            assert_eq!(reader.write(0x1000 + offset, data), Outcome::Unclaimed);
            Ok(())
        }
    }
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let device = Arc::new(Dma {
        bus: bus.downgrade(),
        reader: Mutex::new(Some(bus.reader())),
        own: Mutex::default(),
        depth: AtomicU64::new(0),
    });
    let id = bus.insert(0x1000, 0x10, "dma", device.clone()).unwrap();
    *device.own.lock().unwrap() = Some(id);
    assert_eq!(bus.reader().write(0x1008, &[0; 4]), Outcome::Done);
    assert_eq!(device.depth.load(Ordering::Relaxed), 2);
}

/// Threads that access, move and remove at the same time (THREATS: Firecracker #6088 #6087). The model: a device is at the
/// addresses it was given last, answers with its offset, and is never called after a wait for its removal.
#[test]
fn accesses_moves_and_removals_at_the_same_time() {
    struct Watched {
        gone: AtomicBool,
        called_when_gone: AtomicBool,
    }
    impl BusDevice for Watched {
        fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
            data.copy_from_slice(&offset.to_le_bytes()[..data.len()]);
            self.write(offset, &[])
        }
        fn write(&self, _: u64, _: &[u8]) -> Result<(), AccessError> {
            if self.gone.load(Ordering::SeqCst) {
                self.called_when_gone.store(true, Ordering::SeqCst);
            }
            Ok(())
        }
    }
    // Each region is 0x100 bytes at one of eight slots of 0x1000 bytes, at an address that is a multiple of 0x100: an
    // offset is the low byte of its address, wherever the region is.
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let stop = AtomicBool::new(false);
    let devices: Mutex<Vec<Weak<Watched>>> = Mutex::default();
    thread::scope(|scope| {
        for seed in 1..=3_u64 {
            let (bus, stop) = (&bus, &stop);
            scope.spawn(move || {
                let mut reader = bus.reader();
                let mut random = seed;
                while !stop.load(Ordering::Relaxed) {
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    let address = (random >> 33) % 0x8000;
                    let mut data = [0; 1];
                    match reader.read(address, &mut data) {
                        Outcome::Done => assert_eq!(data[0], address.to_le_bytes()[0]),
                        Outcome::Unclaimed => assert_eq!(data[0], 0xff),
                        other => panic!("{other:?}"),
                    }
                }
            });
        }
        let writers: Vec<_> = (0..2_u64)
            .map(|seed| {
                let (bus, devices) = (&bus, &devices);
                scope.spawn(move || {
                    let mut random = seed + 10;
                    let mut next = |below: u64| {
                        random = random
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1);
                        (random >> 33) % below
                    };
                    for _ in 0..100 {
                        let device = Arc::new(Watched {
                            gone: AtomicBool::new(false),
                            called_when_gone: AtomicBool::new(false),
                        });
                        // Our half of the slots, so that no insertion is refused.
                        let mut base = || (seed * 4 + next(4)) * 0x1000 + next(16) * 0x100;
                        let id = bus
                            .insert(base(), 0x100, "watched", device.clone())
                            .unwrap();
                        for _ in 0..3 {
                            bus.relocate(id, base()).unwrap();
                        }
                        bus.remove(id).unwrap().wait();
                        device.gone.store(true, Ordering::SeqCst);
                        thread::yield_now();
                        assert!(!device.called_when_gone.load(Ordering::SeqCst));
                        devices.lock().unwrap().push(Arc::downgrade(&device));
                    }
                })
            })
            .collect();
        let results: Vec<_> = writers
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        stop.store(true, Ordering::Relaxed);
        assert!(results.iter().all(Result::is_ok));
    });
    // One more change, when nobody is inside: all tables but the last are freed, and with them the devices.
    insert(&bus, 0, |_, _, _| {});
    assert!(
        devices
            .lock()
            .unwrap()
            .iter()
            .all(|device| device.strong_count() == 0)
    );
}

/// A reader that is blocked in a device holds back only memory: others go on changing the bus.
#[test]
fn a_reader_that_stays_inside_blocks_no_writer() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let (entered, leave) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (here, go) = (Arc::clone(&entered), Arc::clone(&leave));
    let id = insert(&bus, 0, move |_, _, _| {
        here.wait();
        go.wait();
    });
    thread::scope(|scope| {
        scope.spawn(|| write(&mut bus.reader(), 0, 0));
        entered.wait();
        let retired = bus.remove(id).unwrap();
        for base in 0..100 {
            let id = insert(&bus, base * 0x100, |_, _, _| {});
            bus.relocate(id, 0x10_0000 + base * 0x100).unwrap();
        }
        assert!(!retired.is_done());
        leave.wait();
        retired.wait();
    });
}
