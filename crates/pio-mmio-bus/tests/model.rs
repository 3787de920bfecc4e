//! The bus beside a model of it: a list of regions that is searched from end to end.
#![expect(clippy::unwrap_used, reason = "test code")]

use std::ops::Range;
use std::sync::{Arc, Mutex};

use pio_mmio_bus::bus::{
    Access, AccessError, AddressSpace, Bus, BusDevice, BusError, Direction, Doorbell, Hook,
    Outcome, RegionId, Verdict,
};
use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// What reached which device, at which offset.
type Log = Arc<Mutex<Vec<(usize, u64)>>>;

struct Device {
    number: usize,
    log: Log,
}

impl BusDevice for Device {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(0);
        self.write(offset, data)
    }

    fn write(&self, offset: u64, _: &[u8]) -> Result<(), AccessError> {
        self.log.lock().unwrap().push((self.number, offset));
        Ok(())
    }
}

struct Deny;

impl Hook for Deny {
    fn before(&self, _: &Access<'_>) -> Verdict {
        Verdict::Deny
    }
}

/// A region as the model has it.
struct Region {
    id: RegionId,
    number: usize,
    base: Option<u64>,
    size: u64,
    denied: Vec<(Range<u64>, Direction)>,
    doorbells: Vec<u64>,
}

impl Region {
    /// In 128 bits nothing overflows.
    fn addresses(&self) -> Range<u128> {
        let base = self.base.map_or(u128::MAX, u128::from);
        base..base.saturating_add(u128::from(self.size))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u64, u64),
    InsertUnmapped(u64),
    Relocate(usize, u64),
    Unmap(usize),
    Remove(usize),
    Hook(usize, Range<u64>, Direction),
    Doorbell(usize, u64),
    Account(bool),
    Read(u64, usize),
    Write(u64, usize),
}

/// Few addresses, so that steps meet: the bottom and the top of the space.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![0..64_u64, (0..64_u64).prop_map(|down| u64::MAX - down)]
}

fn step() -> impl Strategy<Value = Step> {
    let direction = prop_oneof![
        Just(Direction::Reads),
        Just(Direction::Writes),
        Just(Direction::Both)
    ];
    prop_oneof![
        3 => (address(), 0..24_u64).prop_map(|(base, size)| Step::Insert(base, size)),
        1 => (0..24_u64).prop_map(Step::InsertUnmapped),
        2 => (0..8_usize, address()).prop_map(|(which, base)| Step::Relocate(which, base)),
        1 => (0..8_usize).prop_map(Step::Unmap),
        1 => (0..8_usize).prop_map(Step::Remove),
        1 => (0..8_usize, 0..24_u64, 0..8_u64, direction).prop_map(|(which, start, len, direction)| {
            Step::Hook(which, start..start + len, direction)
        }),
        1 => (0..8_usize, 0..24_u64).prop_map(|(which, offset)| Step::Doorbell(which, offset)),
        1 => any::<bool>().prop_map(Step::Account),
        6 => (address(), 0..=9_usize).prop_map(|(address, width)| Step::Read(address, width)),
        6 => (address(), 0..=9_usize).prop_map(|(address, width)| Step::Write(address, width)),
    ]
}

/// Whether a region of `size` bytes can be at `base`, as far as the model is concerned.
fn verdict(
    model: &[Region],
    skip: Option<RegionId>,
    base: u64,
    size: u64,
) -> Result<(), &'static str> {
    let new = u128::from(base)..u128::from(base) + u128::from(size);
    if size == 0 || new.end > 1 << 64 {
        return Err("out of space");
    }
    let overlaps = |other: &&Region| {
        let there = other.addresses();
        Some(other.id) != skip
            && other.base.is_some()
            && there.start < new.end
            && new.start < there.end
    };
    match model.iter().find(overlaps) {
        Some(_) => Err("overlap"),
        None => Ok(()),
    }
}

fn same<T>(expected: Result<(), &'static str>, result: &Result<T, BusError>) -> bool {
    matches!(
        (expected, result),
        (Ok(()), Ok(_))
            | (Err("out of space"), Err(BusError::OutOfSpace { .. }))
            | (Err("overlap"), Err(BusError::Overlap { .. }))
    )
}

/// How an access should end, and what the device should see.
fn expect(
    model: &[Region],
    address: u64,
    width: usize,
    write: bool,
) -> (Outcome, Option<(usize, u64)>) {
    let Some(region) = model
        .iter()
        .find(|region| region.addresses().contains(&u128::from(address)))
    else {
        return (Outcome::Unclaimed, None);
    };
    let offset = address - region.base.unwrap();
    if !matches!(width, 1 | 2 | 4 | 8) {
        return (Outcome::Failed(AccessError::Width { offset, width }), None);
    }
    if offset + width as u64 > region.size {
        return (
            Outcome::Failed(AccessError::Straddle { offset, width }),
            None,
        );
    }
    let touched = offset..offset + width as u64;
    let other_way = if write {
        Direction::Reads
    } else {
        Direction::Writes
    };
    if region.denied.iter().any(|(range, direction)| {
        *direction != other_way && range.start < touched.end && touched.start < range.end
    }) {
        return (Outcome::Failed(AccessError::Denied { offset }), None);
    }
    let rung = write && region.doorbells.contains(&offset);
    (Outcome::Done, (!rung).then_some((region.number, offset)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn the_bus_does_what_a_scan_of_all_regions_does(steps in prop::collection::vec(step(), 1..80)) {
        let bus = Bus::new(AddressSpace::Mmio).unwrap();
        let log = Log::default();
        let mut reader = bus.reader();
        let mut model: Vec<Region> = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            let device = Arc::new(Device { number, log: Arc::clone(&log) });
            let region = |id, base, size| Region { id, number, base, size, denied: Vec::new(), doorbells: Vec::new() };
            match step {
                Step::Insert(base, size) => {
                    let result = bus.insert(base, size, "region", device);
                    prop_assert!(same(verdict(&model, None, base, size), &result));
                    model.extend(result.ok().map(|id| region(id, Some(base), size)));
                }
                Step::InsertUnmapped(size) => {
                    let result = bus.insert_unmapped(size, "region", device);
                    prop_assert_eq!(result.is_ok(), size > 0);
                    model.extend(result.ok().map(|id| region(id, None, size)));
                }
                Step::Relocate(which, base) => {
                    let Some(Region { id, size, .. }) = model.get(which) else { continue };
                    let result = bus.relocate(*id, base);
                    prop_assert!(same(verdict(&model, Some(*id), base, *size), &result));
                    if result.is_ok() {
                        model[which].base = Some(base);
                    }
                }
                Step::Unmap(which) => {
                    let Some(region) = model.get_mut(which) else { continue };
                    bus.unmap(region.id).unwrap();
                    region.base = None;
                }
                Step::Remove(which) => {
                    if which < model.len() {
                        bus.remove(model.remove(which).id).unwrap().wait();
                    }
                }
                Step::Hook(which, offsets, direction) => {
                    let Some(region) = model.get_mut(which) else { continue };
                    let result = bus.add_hook(region.id, offsets.clone(), direction, Arc::new(Deny));
                    prop_assert_eq!(result.is_ok(), !offsets.is_empty() && offsets.end <= region.size);
                    region.denied.extend(result.ok().map(|_| (offsets, direction)));
                }
                Step::Doorbell(which, offset) => {
                    let Some(region) = model.get_mut(which) else { continue };
                    let eventfd = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
                    let doorbell = Doorbell { width: None, datamatch: None, needs_value: false, eventfd };
                    let result = bus.add_doorbell(region.id, offset, doorbell);
                    prop_assert_eq!(result.is_ok(), offset < region.size && !region.doorbells.contains(&offset));
                    region.doorbells.extend(result.ok().map(|_| offset));
                }
                Step::Account(on) => bus.set_accounting(on).unwrap(),
                Step::Read(address, width) => {
                    let (outcome, seen) = expect(&model, address, width, false);
                    let mut data = vec![0x5a; width];
                    prop_assert_eq!(reader.read(address, &mut data), outcome.clone());
                    let byte = if outcome == Outcome::Done { 0 } else { 0xff };
                    prop_assert_eq!(data, vec![byte; width]);
                    prop_assert_eq!(log.lock().unwrap().pop(), seen);
                }
                Step::Write(address, width) => {
                    let (outcome, seen) = expect(&model, address, width, true);
                    prop_assert_eq!(reader.write(address, &vec![0; width]), outcome);
                    prop_assert_eq!(log.lock().unwrap().pop(), seen);
                }
            }
            prop_assert!(log.lock().unwrap().is_empty());
        }
    }
}
