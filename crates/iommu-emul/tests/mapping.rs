//! The mapping layer: every strategy against a recording IOMMU, and strictly against a real unit (issue "Done when" 4).

mod support;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use iommu_emul::{
    mapping::{
        AlwaysResident, CostModel, IovaAllocator, MapError, Mapper, PAGE_SIZE, PageRange,
        QueuedInvalidation, Recording, SecondStageTables, Strategy as Policy,
    },
    spec::register::offset,
    vtd::Access,
};
use proptest::prelude::*;
use support::{Guest, QUEUE, SECOND, STATUS};
use vm_memory::Permissions;

const AGE: Duration = Duration::from_millis(10);
const TICK: Duration = Duration::from_millis(3);

const POLICIES: [Policy; 7] = [
    Policy::Strict,
    Policy::Deferred { quota: 5, age: AGE },
    Policy::Asynchronous,
    Policy::Shared,
    Policy::Persistent,
    Policy::OnDemand { quota: 6 },
    Policy::Optimistic { quota: 5, age: AGE },
];

type TestMapper = Mapper<Arc<Recording>, Arc<Recording>>;

fn mapper(policy: Policy, delay: u64) -> (TestMapper, Arc<Recording>) {
    let iommu = Arc::new(Recording::new(CostModel::default(), delay));
    let iovas = IovaAllocator::new(PAGE_SIZE, 1 << 20);
    (
        Mapper::new(iommu.clone(), iommu.clone(), iovas, policy),
        iommu,
    )
}

fn page(n: u64) -> PageRange {
    PageRange {
        address: n * PAGE_SIZE,
        pages: 1,
    }
}

#[derive(Clone, Debug)]
enum Step {
    Map { page: u64, pages: u64 },
    Unmap(usize),
    Tick,
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..12_u64, 1..5_u64).prop_map(|(page, pages)| Step::Map { page, pages }),
        6 => any::<usize>().prop_map(Step::Unmap),
        2 => Just(Step::Tick),
        1 => Just(Step::Flush),
    ]
}

proptest! {
    /// Stale ≤ quota, stale age ≤ limit + one tick, pinned ⇔ reachable, what is in use reaches its page, nothing reaches a page
    /// after a strict unmap returned, and every mapping can be reclaimed.
    #[test]
    fn every_policy_keeps_its_promises(
        policy in prop::sample::select(POLICIES.as_slice()),
        delay in 0..4_u64,
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let (mut mapper, iommu) = mapper(policy, delay);
        let mut used: Vec<(u64, PageRange)> = Vec::new();
        let mut now = Duration::ZERO;
        // By I/O page: since when nobody uses it.
        let mut stale: BTreeMap<u64, Duration> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Map { page, pages } => {
                    let range = PageRange { address: page * PAGE_SIZE, pages };
                    let iova = mapper.map(range, Permissions::ReadWrite).unwrap();
                    for i in 0..pages {
                        let at = i * PAGE_SIZE + 5;
                        prop_assert_eq!(iommu.reaches(iova + at), Some(range.address + at));
                        stale.remove(&(iova / PAGE_SIZE + i));
                    }
                    used.push((iova, range));
                }
                Step::Unmap(_) if used.is_empty() => {}
                Step::Unmap(n) => {
                    let (iova, range) = used.swap_remove(n % used.len());
                    mapper.unmap(iova).unwrap();
                    if !used.iter().any(|(other, _)| *other == iova) {
                        for i in 0..range.pages {
                            stale.insert(iova / PAGE_SIZE + i, now);
                        }
                        if matches!(policy, Policy::Strict | Policy::Shared) {
                            prop_assert_eq!(iommu.reaches(iova), None);
                        }
                    }
                }
                Step::Tick => {
                    now += TICK;
                    mapper.tick(now).unwrap();
                }
                Step::Flush => {
                    mapper.flush().unwrap();
                    prop_assert_eq!(mapper.usage().stale, 0);
                }
            }
            prop_assert_eq!(iommu.pinned(), iommu.reachable());
            stale.retain(|page, _| iommu.reaches(page * PAGE_SIZE).is_some());
            let oldest = stale.values().min().map(|since| now - *since);
            match policy {
                Policy::Deferred { quota, age } | Policy::Optimistic { quota, age } => {
                    prop_assert!(mapper.usage().stale <= quota);
                    prop_assert!(oldest.is_none_or(|oldest| oldest < age + TICK));
                }
                Policy::OnDemand { quota } => {
                    let usage = mapper.usage();
                    prop_assert!(usage.stale == 0 || usage.used + usage.stale <= quota.max(usage.used));
                }
                Policy::Strict | Policy::Shared => prop_assert_eq!(mapper.usage().stale, 0),
                _ => {}
            }
        }
        for (iova, _) in used {
            mapper.unmap(iova).unwrap();
        }
        mapper.flush().unwrap();
        prop_assert!(iommu.reachable().is_empty());
        prop_assert!(iommu.pinned().is_empty());
    }

    /// Live ranges never overlap, lie in the space, are aligned, and freed ones serve again.
    #[test]
    fn the_allocator_never_gives_twice(steps in prop::collection::vec((1..40_u64, any::<bool>(), any::<usize>()), 1..200)) {
        let mut iovas = IovaAllocator::new(3 * PAGE_SIZE, 1000 * PAGE_SIZE);
        let mut live: Vec<(u64, u64)> = Vec::new();
        for (pages, free, which) in steps {
            if free && !live.is_empty() {
                let (iova, pages) = live.swap_remove(which % live.len());
                iovas.free(iova, pages);
                let again = iovas.allocate(pages).unwrap();
                iovas.free(again, pages);
            } else if let Ok(iova) = iovas.allocate(pages) {
                prop_assert!(iova.is_multiple_of(pages.next_power_of_two() * PAGE_SIZE));
                prop_assert!(iova >= 3 * PAGE_SIZE && iova + pages * PAGE_SIZE <= 1000 * PAGE_SIZE);
                prop_assert!(live.iter().all(|(other, n)| iova + pages * PAGE_SIZE <= *other || other + n * PAGE_SIZE <= iova));
                live.push((iova, pages));
            }
        }
    }
}

#[test]
fn invalidations_are_what_the_policy_says() {
    let spent = |policy| {
        let (mut mapper, iommu) = mapper(policy, 0);
        for _ in 0..10 {
            let iova = mapper.map(page(7), Permissions::Read).unwrap();
            mapper.unmap(iova).unwrap();
        }
        let counts = iommu.counts();
        (
            counts.maps,
            counts.unmaps,
            counts.invalidations,
            counts.waits,
        )
    };
    let [
        strict,
        deferred,
        asynchronous,
        shared,
        persistent,
        on_demand,
        optimistic,
    ] = POLICIES.map(spent);
    assert_eq!(strict, (10, 10, 10, 10));
    assert_eq!(deferred, (10, 10, 1, 1));
    assert_eq!(asynchronous, (10, 10, 10, 0));
    assert_eq!(shared, strict);
    assert_eq!(persistent, (1, 0, 0, 0));
    assert_eq!(on_demand, persistent);
    assert_eq!(optimistic, persistent);
}

#[test]
fn nonsense_is_refused() {
    let (mut mapper, iommu) = mapper(Policy::Strict, 0);
    for (address, pages) in [(1, 1), (0, 0), (u64::MAX - 4095, 1), (0, u64::MAX)] {
        let range = PageRange { address, pages };
        let refused = mapper.map(range, Permissions::Read);
        assert!(matches!(refused, Err(MapError::Pages(r)) if r == range));
    }
    assert!(matches!(
        mapper.unmap(0x5000),
        Err(MapError::NotMapped(0x5000))
    ));
    let iova = mapper.map(page(1), Permissions::Read).unwrap();
    mapper.unmap(iova).unwrap();
    assert!(mapper.unmap(iova).is_err());
    let whole = PageRange {
        address: 0,
        pages: 1 << 41,
    };
    assert!(matches!(
        mapper.map(whole, Permissions::Read),
        Err(MapError::Iova(_))
    ));
    assert_eq!(iommu.counts().maps, 1);
}

#[test]
fn stale_mappings_give_way_when_addresses_run_out() {
    let iommu = Arc::new(Recording::default());
    let iovas = IovaAllocator::new(0, 4 * PAGE_SIZE);
    let mut mapper = Mapper::new(iommu.clone(), iommu.clone(), iovas, Policy::Persistent);
    for n in 0..40 {
        let iova = mapper.map(page(n), Permissions::Read).unwrap();
        assert_eq!(iommu.reaches(iova), Some(n * PAGE_SIZE));
        mapper.unmap(iova).unwrap();
    }
    assert!(mapper.usage().stale <= 4);
}

/// A strict mapper over tables in guest memory and the unit's own queue: after unmap the device is blocked.
#[test]
fn a_unit_translates_through_the_mapper() {
    let guest = Guest::new(iommu_emul::vtd::Config::default());
    guest.context(SECOND | 1, 5 << 8 | 2);
    guest.start(0);
    let unit = guest.unit.clone();
    let queue =
        QueuedInvalidation::new(guest.memory.clone(), QUEUE, STATUS, 5, move |tail: u64| {
            use pio_mmio_bus::bus::BusDevice;
            unit.write(offset::IQT.into(), &tail.to_le_bytes()).unwrap();
        });
    let space = PageRange {
        address: SECOND,
        pages: 64,
    };
    let tables = SecondStageTables::new(guest.memory.clone(), queue, 4, space);
    let iovas = IovaAllocator::new(0, 1 << 32);
    let mut mapper = Mapper::new(tables, AlwaysResident, iovas, Policy::Strict);
    let view = guest.view();
    for round in 0..600 {
        let range = PageRange {
            address: 0x40_0000 + round * PAGE_SIZE,
            pages: 1 + round % 3,
        };
        let iova = mapper.map(range, Permissions::ReadWrite).unwrap();
        let last = range.bytes() - 1;
        assert_eq!(
            guest.translate(&view, iova + last, Access::Write),
            Some(range.address + last)
        );
        mapper.unmap(iova).unwrap();
        assert_eq!(guest.translate(&view, iova + last, Access::Write), None);
        assert!(guest.take_fault().is_some());
    }
}
