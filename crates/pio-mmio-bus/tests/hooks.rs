//! Hooks see, deny and suspend accesses to the registers they cover, and no others.
#![expect(clippy::unwrap_used, reason = "test code")]

use std::sync::{Arc, Mutex};

use pio_mmio_bus::bus::{
    Access, AccessError, AddressSpace, Bus, BusDevice, BusError, Direction, Hook, Operation,
    Outcome, Suspension, Verdict,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Zeroes; counts.
#[derive(Default)]
struct Zeroes(Mutex<u32>);

impl BusDevice for Zeroes {
    fn read(&self, _: u64, data: &mut [u8]) -> Result<(), AccessError> {
        *self.0.lock().unwrap() += 1;
        data.fill(0);
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), AccessError> {
        *self.0.lock().unwrap() += 1;
        Ok(())
    }
}

type Log = Arc<Mutex<Vec<String>>>;

/// Gives one verdict and writes down what it sees.
struct Scribe {
    name: &'static str,
    verdict: Mutex<Verdict>,
    log: Log,
}

impl Hook for Scribe {
    fn before(&self, access: &Access<'_>) -> Verdict {
        let what = match access.operation {
            Operation::Read { width } => format!("read {width}"),
            Operation::Write(data) => format!("write {data:x?}"),
        };
        let line = format!("{} before {what} at {:#x}", self.name, access.offset);
        self.log.lock().unwrap().push(line);
        self.verdict.lock().unwrap().clone()
    }

    fn after(&self, _: &Access<'_>, data: &[u8], outcome: &Outcome) {
        let line = format!("{} after {data:x?} {outcome:?}", self.name);
        self.log.lock().unwrap().push(line);
    }
}

fn scribe(name: &'static str, verdict: Verdict, log: &Log) -> Arc<Scribe> {
    Arc::new(Scribe {
        name,
        verdict: Mutex::new(verdict),
        log: Arc::clone(log),
    })
}

fn take(log: &Log) -> Vec<String> {
    std::mem::take(&mut log.lock().unwrap())
}

#[test]
fn a_hook_sees_exactly_the_accesses_that_touch_its_registers() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let device = Arc::new(Zeroes::default());
    let region = bus.insert(0x1000, 0x40, "device", device.clone()).unwrap();
    for (direction, sees_reads, sees_writes) in [
        (Direction::Reads, true, false),
        (Direction::Writes, false, true),
        (Direction::Both, true, true),
    ] {
        let log = Log::default();
        let hook = bus
            .add_hook(
                region,
                0x13..0x16,
                direction,
                scribe("hook", Verdict::Allow, &log),
            )
            .unwrap();
        let mut reader = bus.reader();
        for offset in 0..0x40 {
            for width in [1, 2, 4, 8] {
                let fits = offset + width <= 0x40;
                let touches = fits && offset < 0x16 && offset + width > 0x13;
                let bytes = usize::try_from(width).unwrap();
                let outcome = reader.read(0x1000 + offset, &mut [0; 8][..bytes]);
                assert_eq!(outcome == Outcome::Done, fits);
                assert_eq!(
                    !take(&log).is_empty(),
                    touches && sees_reads,
                    "{offset} {width}"
                );
                let outcome = reader.write(0x1000 + offset, &[0; 8][..bytes]);
                assert_eq!(outcome == Outcome::Done, fits);
                assert_eq!(
                    !take(&log).is_empty(),
                    touches && sees_writes,
                    "{offset} {width}"
                );
            }
        }
        bus.remove_hook(hook).unwrap().wait();
        assert_eq!(reader.read(0x1013, &mut [0]), Outcome::Done);
        assert!(take(&log).is_empty());
    }
}

#[test]
fn hooks_nest_and_see_what_the_guest_sees() {
    let bus = Bus::new(AddressSpace::Pio).unwrap();
    let region = bus
        .insert(0, 4, "device", Arc::new(Zeroes::default()))
        .unwrap();
    let log = Log::default();
    let inner = scribe("inner", Verdict::Allow, &log);
    for hook in [scribe("outer", Verdict::Allow, &log), inner.clone()] {
        bus.add_hook(region, 0..4, Direction::Both, hook).unwrap();
    }
    let mut reader = bus.reader();

    let mut data = [0x55; 2];
    assert_eq!(reader.read(2, &mut data), Outcome::Done);
    assert_eq!(data, [0; 2]);
    assert_eq!(
        take(&log),
        [
            "outer before read 2 at 0x2",
            "inner before read 2 at 0x2",
            "inner after [0, 0] Done",
            "outer after [0, 0] Done"
        ]
    );

    *inner.verdict.lock().unwrap() = Verdict::Deny;
    let denied = Outcome::Failed(AccessError::Denied { offset: 3 });
    assert_eq!(reader.write(3, &[0xab]), denied);
    assert_eq!(
        take(&log),
        [
            "outer before write [ab] at 0x3".to_owned(),
            "inner before write [ab] at 0x3".to_owned(),
            format!("outer after [ab] {denied:?}"),
        ]
    );
    assert_eq!(reader.read(3, &mut data[..1]), denied);
    assert_eq!(data[0], 0xff);
}

#[test]
fn a_suspended_access_has_not_happened_and_can_be_made_again() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let device = Arc::new(Zeroes::default());
    let region = bus.insert(0, 8, "device", device.clone()).unwrap();
    let eventfd = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let suspension = Suspension::new(Arc::clone(&eventfd));
    let log = Log::default();
    let hook = scribe("hook", Verdict::Suspend(suspension.clone()), &log);
    bus.add_hook(region, 0..8, Direction::Both, hook.clone())
        .unwrap();
    let mut reader = bus.reader();

    assert_eq!(
        reader.write(4, &[1]),
        Outcome::Suspended(suspension.clone())
    );
    assert_eq!(*device.0.lock().unwrap(), 0);
    *hook.verdict.lock().unwrap() = Verdict::Allow;
    eventfd.write(1).unwrap();
    assert_eq!(suspension.eventfd().read().unwrap(), 1);
    assert_eq!(reader.write(4, &[1]), Outcome::Done);
    assert_eq!(*device.0.lock().unwrap(), 1);
}

/// A guest that moves a BAR would otherwise shake off whoever watches it.
#[test]
fn hooks_stay_attached_where_the_region_moves() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let region = bus
        .insert(0x1000, 8, "bar", Arc::new(Zeroes::default()))
        .unwrap();
    let log = Log::default();
    bus.add_hook(
        region,
        4..8,
        Direction::Both,
        scribe("hook", Verdict::Deny, &log),
    )
    .unwrap();
    bus.relocate(region, u64::MAX - 7).unwrap();
    let mut reader = bus.reader();
    assert_eq!(reader.read(u64::MAX - 7, &mut [0; 4]), Outcome::Done);
    for address in [u64::MAX - 3, u64::MAX] {
        assert!(matches!(
            reader.read(address, &mut [0]),
            Outcome::Failed(AccessError::Denied { .. })
        ));
    }
    assert!(matches!(
        reader.read(u64::MAX - 7, &mut [0; 8]),
        Outcome::Failed(AccessError::Denied { .. })
    ));
}

#[test]
fn a_hook_outside_its_region_is_refused() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let region = bus
        .insert(0, 8, "device", Arc::new(Zeroes::default()))
        .unwrap();
    let log = Log::default();
    #[expect(clippy::reversed_empty_ranges, reason = "what is tested")]
    for offsets in [0..9, 8..9, 3..3, 5..4, 0..u64::MAX] {
        let hook = scribe("hook", Verdict::Allow, &log);
        let result = bus.add_hook(region, offsets, Direction::Both, hook);
        assert!(matches!(result, Err(BusError::NotInRegion { .. })));
    }
    let id = bus
        .add_hook(
            region,
            0..8,
            Direction::Both,
            scribe("hook", Verdict::Allow, &log),
        )
        .unwrap();
    let _ = bus.remove(region).unwrap();
    assert!(matches!(bus.remove_hook(id), Err(BusError::NoHook(no)) if no == id));
}
