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

fn guest(criterion: &mut Criterion) {
    let world = world(32);
    let grants = &world.grants;
    let grant_end = |reference| {
        grants
            .grant(reference, DomId(1), 3, Access::ReadOnly)
            .unwrap();
        grants.end(reference).unwrap();
    };
    let mut group = criterion.benchmark_group("guest");
    let reference = grants.allocate().unwrap();
    group.bench_function("grant and end", |bencher| {
        bencher.iter(|| grant_end(reference));
    });
    group.bench_function("allocate, grant, end and release", |bencher| {
        bencher.iter(|| {
            let reference = grants.allocate().unwrap();
            grant_end(reference);
            grants.release(reference).unwrap();
        });
    });
    group.finish();
}

/// How packets reach a guest, which is domain 0: as many as take 32 pages at once.
fn receive(criterion: &mut Criterion) {
    let world = world(2 * BATCH);
    let caller: Caller<'_> = world.hypervisor.caller(DomId(1), 0).unwrap();
    let frame = |domain: usize, number| world.pages[domain].reach(number).unwrap().0;
    let offers: Vec<_> = (0..BATCH)
        .map(|_| world.grants.allocate().unwrap())
        .collect();
    // The largest are those that the guest is to have cut by nobody, or that its peer did not cut.
    for size in [64, 512, 1500, 4096, 16384, 65535] {
        let packet = vec![7; size];
        let parts: Vec<_> = packet.chunks(PAGE).collect();
        let packets = BATCH / parts.len();
        let parts: Vec<_> = parts.iter().cycle().take(packets * parts.len()).collect();
        let mut group = criterion.benchmark_group(format!("receive {size} bytes"));
        group
            .throughput(Throughput::Elements(packets as u64))
            .sample_size(20);
        let mut copy = copies(&world);
        copy.truncate(parts.len());
        for (op, part) in copy.iter_mut().zip(&parts) {
            (op.source, op.dest) = (op.dest, op.source);
            op.flags = CopyFlags::DEST_REF.bits();
            op.length = part.len() as u16;
        }
        group.bench_function("copy", |bencher| bencher.iter(|| caller.copy(&mut copy)));
        assert!(copy.iter().all(|op| op.status == 0));
        let (mut map, mut unmap) = operations(&world.references, 0);
        group.bench_function("map", |bencher| {
            bencher.iter(|| {
                caller.map(&mut map);
                for (op, part) in map.iter().zip(&parts) {
                    assert!(frame(1, op.host_address / PAGE as u64).write(0, part));
                }
                take_back(&map, &mut unmap);
                caller.unmap(&mut unmap);
            });
        });
        let shared: Vec<_> = (0..BATCH as u64).map(|number| frame(0, number)).collect();
        group.bench_function("persistent", |bencher| {
            bencher.iter(|| {
                for (frame, part) in shared.iter().zip(&parts) {
                    assert!(frame.write(0, part));
                }
            });
        });
        // The guest needs these pages again: it takes the packet out.
        let own: Vec<_> = (BATCH as u64..)
            .map(|number| frame(0, number))
            .take(BATCH)
            .collect();
        group.bench_function("persistent, copied by the guest", |bencher| {
            bencher.iter(|| {
                for ((frame, own), part) in shared.iter().zip(&own).zip(&parts) {
                    assert!(frame.write(0, part) && frame.copy_to(0, own, 0, part.len()));
                }
            });
        });
        drop((shared, own));
        // The pages go to the guest, and as many of the guest's come back.
        let mut flips: Vec<_> = offers
            .iter()
            .zip(0..)
            .take(parts.len())
            .map(|(&reference, frame)| Transfer {
                frame,
                domain: DomId(0),
                reference,
                ..Transfer::default()
            })
            .collect();
        group.bench_function("flip", |bencher| {
            bencher.iter(|| {
                for (op, part) in flips.iter().zip(&parts) {
                    assert!(frame(1, op.frame).write(0, part));
                    let room = 2 * BATCH as u64 + op.frame;
                    world
                        .grants
                        .accept_transfer(op.reference, DomId(1), room)
                        .unwrap();
                }
                caller.transfer(&mut flips);
                for op in &flips {
                    let came = world.grants.end_transfer(op.reference).unwrap().unwrap();
                    let page = world.pages[0].take(came).unwrap();
                    assert!(world.pages[1].give(page, &mut || Some(op.frame)));
                }
            });
        });
        group.finish();
    }
}

criterion_group!(benches, copy, map_unmap, guest, receive);
criterion_main!(benches);
