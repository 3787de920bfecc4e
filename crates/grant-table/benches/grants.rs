//! Copies beside `memcpy`, mappings beside a hypervisor that keeps everything in hash maps under one mutex, and the ways in which a
//! packet can reach a guest.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "benchmark code"
)]

mod hashed;

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use grant_table::guest::{Access, Grants};
use grant_table::hypervisor::{BATCH, Caller, DomainConfig, Hypervisor, Memory, Pages};
use grant_table::spec::DomId;
use grant_table::spec::grant::{
    Copy, CopyFlags, CopySide, GrantRef, MapFlags, MapGrantRef, Transfer, UnmapGrantRef,
};

const PAGE: usize = 4096;
/// 64 MiB.
const COLD: usize = 16384;

struct World {
    hypervisor: Hypervisor,
    grants: Grants,
    references: Vec<GrantRef>,
    pages: [Arc<Pages>; 2],
}

/// Domain 0 grants `count` pages to domain 1, which has as many of its own and room to map them.
fn world(count: usize) -> World {
    let hypervisor = Hypervisor::new();
    let pages = [0, 1].map(|_| Arc::new(Pages::new(2 * count, count, 2 * count)));
    for (id, pages) in (0..).zip(&pages) {
        let config = DomainConfig {
            vcpus: 2,
            ..DomainConfig::default()
        };
        hypervisor
            .create(DomId(id), config, Arc::clone(pages))
            .unwrap();
        let number = (0..count as u64).map(|number| pages.reach(number).unwrap().0);
        number.for_each(|frame| assert!(frame.write(0, &[id as u8 + 1; PAGE])));
    }
    let table = hypervisor
        .caller(DomId(0), 0)
        .unwrap()
        .setup_table(DomId::SELF, 64)
        .unwrap();
    let grants = Grants::new(table);
    let references = (0..count as u64).map(|frame| {
        let reference = grants.allocate().unwrap();
        grants
            .grant(reference, DomId(1), frame, Access::ReadWrite)
            .unwrap();
        reference
    });
    let references = references.collect();
    World {
        hypervisor,
        grants,
        references,
        pages,
    }
}

fn copies(world: &World) -> Vec<Copy> {
    let side = |page, domain| CopySide {
        page,
        domain,
        ..CopySide::default()
    };
    let references = world.references.iter().zip(0..);
    let one = |(reference, own): (&GrantRef, u64)| Copy {
        source: side(reference.0.into(), DomId(0)),
        dest: side(own, DomId::SELF),
        length: PAGE as u16,
        flags: CopyFlags::SOURCE_REF.bits(),
        ..Copy::default()
    };
    references.map(one).collect()
}

fn copy(criterion: &mut Criterion) {
    for (name, count) in [
        ("copy, 64 MiB of fresh references", COLD),
        ("copy, 32 hot pages", 32),
    ] {
        let mut group = criterion.benchmark_group(name);
        group
            .throughput(Throughput::Bytes((count * PAGE) as u64))
            .sample_size(20);
        let world = world(count);
        let caller = world.hypervisor.caller(DomId(1), 0).unwrap();
        let mut operations = copies(&world);
        group.bench_function("grant copy", |bencher| {
            bencher.iter(|| {
                operations
                    .chunks_mut(BATCH)
                    .for_each(|batch| caller.copy(batch))
            });
        });
        assert!(operations.iter().all(|op| op.status == 0));
        // The same pages.
        let frame = |pages: &Pages, number| pages.reach(number).unwrap().0;
        let pairs: Vec<_> = (0..count as u64)
            .map(|number| {
                (
                    frame(&world.pages[0], number),
                    frame(&world.pages[1], number),
                )
            })
            .collect();
        group.bench_function("memcpy", |bencher| {
            bencher.iter(|| {
                for (from, to) in &pairs {
                    black_box(from.copy_to(0, to, 0, PAGE));
                }
            });
        });
        group.finish();
    }
}

/// What both hypervisors can do.
trait Mapping: Sync {
    fn round(&self, vcpu: usize, map: &mut [MapGrantRef], unmap: &mut [UnmapGrantRef]);
}

impl Mapping for World {
    fn round(&self, vcpu: usize, map: &mut [MapGrantRef], unmap: &mut [UnmapGrantRef]) {
        let caller = self.hypervisor.caller(DomId(1), vcpu).unwrap();
        caller.map(map);
        take_back(map, unmap);
        caller.unmap(unmap);
    }
}

impl Mapping for hashed::Hashed {
    fn round(&self, _: usize, map: &mut [MapGrantRef], unmap: &mut [UnmapGrantRef]) {
        self.map(map);
        take_back(map, unmap);
        self.unmap(unmap);
    }
}

fn take_back(map: &[MapGrantRef], unmap: &mut [UnmapGrantRef]) {
    for (unmap, map) in unmap.iter_mut().zip(map) {
        assert_eq!(map.status, 0);
        unmap.handle = map.handle;
        unmap.host_address = map.host_address;
    }
}

/// The operations of one virtual CPU: each has its own pages.
fn operations(references: &[GrantRef], vcpu: usize) -> (Vec<MapGrantRef>, Vec<UnmapGrantRef>) {
    let own = references.iter().zip(0u64..).skip(vcpu * BATCH).take(BATCH);
    let map = own.map(|(&reference, index)| MapGrantRef {
        host_address: (references.len() as u64 + index) * PAGE as u64,
        flags: MapFlags::HOST.bits(),
        reference,
        ..MapGrantRef::default()
    });
    (map.collect(), vec![UnmapGrantRef::default(); BATCH])
}

fn map_unmap(criterion: &mut Criterion) {
    let world = world(2 * BATCH);
    let hashed = hashed::Hashed::new(&world.grants, &world.pages[0]);
    let both: [(&str, &dyn Mapping); 2] = [("grant-table", &world), ("Mutex<HashMap>", &hashed)];
    let mut group = criterion.benchmark_group("map and unmap 32");
    group
        .throughput(Throughput::Elements(BATCH as u64))
        .sample_size(30);
    for (name, mapping) in both {
        let (mut map, mut unmap) = operations(&world.references, 0);
        group.bench_function(BenchmarkId::new(name, "1 thread"), |bencher| {
            bencher.iter(|| mapping.round(0, &mut map, &mut unmap));
        });
        // The time of one thread while another does the same.
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut map, mut unmap) = operations(&world.references, 1);
                while !stop.load(Ordering::Relaxed) {
                    mapping.round(1, &mut map, &mut unmap);
                }
            });
            group.bench_function(BenchmarkId::new(name, "2 threads"), |bencher| {
                bencher.iter(|| mapping.round(0, &mut map, &mut unmap));
            });
            stop.store(true, Ordering::Relaxed);
        });
    }
    group.finish();
}

fn grant_end(criterion: &mut Criterion) {
    let world = world(32);
    let mut group = criterion.benchmark_group("guest");
    group.bench_function("allocate, grant, end, release", |bencher| {
        bencher.iter(|| {
            let reference = world.grants.allocate().unwrap();
            world
                .grants
                .grant(reference, DomId(1), 3, Access::ReadOnly)
                .unwrap();
            world.grants.end(reference).unwrap();
            world.grants.release(reference).unwrap();
        });
    });
    group.finish();
}

/// How a packet reaches a page of the guest's, in batches of 32.
fn receive(criterion: &mut Criterion) {
    let world = world(64);
    let caller: Caller<'_> = world.hypervisor.caller(DomId(1), 0).unwrap();
    for size in [64, 512, 1500, 4096] {
        let mut group = criterion.benchmark_group(format!("receive 32 packets of {size} bytes"));
        group
            .throughput(Throughput::Elements(BATCH as u64))
            .sample_size(20);
        let mut copy = copies(&world);
        for op in &mut copy {
            (op.source, op.dest) = (op.dest, op.source);
            op.flags = CopyFlags::DEST_REF.bits();
            op.length = size as u16;
        }
        group.bench_function("copy", |bencher| {
            bencher.iter(|| caller.copy(&mut copy[..BATCH]))
        });
        let packet = vec![7; size];
        let (mut map, mut unmap) = operations(&world.references, 0);
        group.bench_function("map, write, unmap", |bencher| {
            bencher.iter(|| {
                caller.map(&mut map);
                for op in &map {
                    let (frame, _) = world.pages[1].reach(op.host_address / PAGE as u64).unwrap();
                    assert!(frame.write(0, &packet));
                }
                take_back(&map, &mut unmap);
                caller.unmap(&mut unmap);
            });
        });
        let persistent: Vec<_> = (0..32)
            .map(|number| world.pages[0].reach(number).unwrap().0)
            .collect();
        group.bench_function("persistent grant, write", |bencher| {
            bencher.iter(|| {
                persistent
                    .iter()
                    .for_each(|frame| assert!(frame.write(0, &packet)))
            });
        });
        drop(persistent);
        // The page goes to the guest, and one of the guest's comes back.
        let offer = [
            world.grants.allocate().unwrap(),
            world.grants.allocate().unwrap(),
        ];
        group.bench_function("page flip", |bencher| {
            bencher.iter(|| {
                for number in 0..BATCH as u64 {
                    let frame = world.pages[1].frame(number).unwrap().0;
                    assert!(frame.write(0, &packet));
                    drop(frame);
                    world
                        .grants
                        .accept_transfer(offer[0], DomId(1), 100)
                        .unwrap();
                    let mut op = [Transfer {
                        frame: number,
                        domain: DomId(0),
                        reference: offer[0],
                        ..Transfer::default()
                    }];
                    caller.transfer(&mut op);
                    assert_eq!(world.grants.end_transfer(offer[0]), Ok(Some(100)));
                    let page = world.pages[0].take(100).unwrap();
                    assert!(world.pages[1].give(page, &mut || Some(number)));
                }
            });
        });
        for reference in offer {
            world.grants.release(reference).unwrap();
        }
        group.finish();
    }
}

criterion_group!(benches, copy, map_unmap, grant_end, receive);
criterion_main!(benches);
