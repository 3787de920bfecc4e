//! What a bus counts, and that it counts only while told to.

use std::sync::Arc;
use std::thread;

use pio_mmio_bus::bus::{AccessError, AddressSpace, Bus, BusDevice, BusReport, Outcome};

/// Fails at odd offsets.
struct Even;

impl BusDevice for Even {
    fn read(&self, offset: u64, _: &mut [u8]) -> Result<(), AccessError> {
        match offset % 2 {
            0 => Ok(()),
            _ => Err(AccessError::NoRegister { offset }),
        }
    }

    fn write(&self, offset: u64, _: &[u8]) -> Result<(), AccessError> {
        self.read(offset, &mut [])
    }
}

#[test]
fn accesses_are_counted_by_region_while_accounting_is_on() {
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    bus.insert(0, 8, "a", Arc::new(Even)).unwrap();
    let b = bus.insert(8, 8, "b", Arc::new(Even)).unwrap();
    bus.insert(16, 8, "never", Arc::new(Even)).unwrap();
    let mut reader = bus.reader();
    let _ = reader.read(0, &mut [0]);
    bus.set_accounting(true).unwrap();
    for address in 0..16 {
        let _ = reader.read(address, &mut [0]);
    }
    let _ = reader.write_string(9, 1, &[0; 10]);
    bus.set_accounting(false).unwrap();
    let _ = reader.read(1, &mut [0]);

    let _ = bus.remove(b).unwrap();
    let report = bus.report();
    let regions: Vec<_> = report
        .regions
        .iter()
        .map(|region| {
            (
                region.name.as_str(),
                region.reads,
                region.writes,
                region.failed,
            )
        })
        .collect();
    assert_eq!(regions, [("a", 8, 0, 4), ("b", 8, 10, 14)]);
    for region in &report.regions {
        let counted: u64 = region.times.buckets.iter().map(|bucket| bucket.count).sum();
        assert_eq!(counted, region.reads + region.writes);
        assert!(region.times.min <= region.times.p50 && region.times.p50 <= region.times.p99);
        assert!(region.times.p99 <= region.times.max && region.times.max <= region.times.total);
    }
}

#[test]
fn failed_and_unclaimed_accesses_are_always_counted_also_of_readers_that_are_gone() {
    let bus = Bus::new(AddressSpace::Pio).unwrap();
    bus.insert(0, 8, "even", Arc::new(Even)).unwrap();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut reader = bus.reader();
                for _ in 0..100 {
                    assert_eq!(reader.read(8, &mut [0]), Outcome::Unclaimed);
                    assert_eq!(reader.write(0x1000, &[0]), Outcome::Unclaimed);
                    assert!(matches!(reader.read(1, &mut [0]), Outcome::Failed(_)));
                    assert!(matches!(reader.write(0, &[0; 3]), Outcome::Failed(_)));
                }
            });
        }
    });
    let mut reader = bus.reader();
    let _ = reader.read(8, &mut [0]);
    let report = bus.report();
    assert_eq!((report.unclaimed, report.failed), (601, 600));
    assert_eq!(report.regions, []);
}

#[test]
fn a_report_survives_json() {
    let bus = Bus::new(AddressSpace::Pio).unwrap();
    bus.insert(0, 8, "even", Arc::new(Even)).unwrap();
    bus.set_accounting(true).unwrap();
    let _ = bus.reader().read(0, &mut [0]);
    let json = serde_json::to_string(&bus.report()).unwrap();
    assert_eq!(
        serde_json::from_str::<BusReport>(&json).unwrap(),
        bus.report()
    );
}
