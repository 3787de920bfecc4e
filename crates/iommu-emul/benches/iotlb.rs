//! Translation: an IOTLB hit on one thread and on two, and a miss with a walk of 4 levels, beside vm-memory's `IommuMemory`.

#![expect(clippy::unwrap_used, reason = "benchmark")]

use std::{
    hint::black_box,
    sync::{Arc, Barrier, RwLock, RwLockReadGuard},
    thread,
    time::{Duration, Instant},
};

use criterion::{Criterion, criterion_group, criterion_main};
use iommu_emul::{
    mapping::{AlwaysResident, IovaAllocator, Mapper, PAGE_SIZE, PageRange, Strategy},
    vtd::{Access, Config, DmaView, Unit},
};
use pio_mmio_bus::{
    bus::BusDevice,
    interrupt::{InterruptError, MsiMessage, MsiSink},
    pci::RequesterId,
};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryMmap, Permissions,
    iommu::{Iommu, IommuMemory, Iotlb, IotlbIterator},
};

const PAGES: u64 = 64;
const ROOT: u64 = 0x1000;
const CONTEXTS: u64 = 0x2000;
const TABLES: u64 = 0x10_0000;

struct Sink;

impl MsiSink for Sink {
    fn send(&self, _message: MsiMessage) -> Result<(), InterruptError> {
        Ok(())
    }
}

struct NoQueue;

impl iommu_emul::mapping::Invalidator for NoQueue {
    fn invalidate(&self, _iova: Option<PageRange>) -> iommu_emul::mapping::Ticket {
        iommu_emul::mapping::Ticket(0)
    }

    fn done(&self, _ticket: iommu_emul::mapping::Ticket) -> bool {
        true
    }
}

fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap())
}

/// A view of 1024 pages at the returned addresses, translated by 4 levels.
fn view() -> (DmaView<Arc<GuestMemoryMmap>>, Vec<u64>) {
    let memory = memory();
    let unit = Unit::new(
        Config::default().capabilities().unwrap(),
        memory.clone(),
        Arc::new(Sink),
    );
    let space = PageRange {
        address: TABLES,
        pages: 64,
    };
    let tables = iommu_emul::mapping::SecondStageTables::new(memory.clone(), NoQueue, 4, space);
    memory.write_obj(CONTEXTS | 1, GuestAddress(ROOT)).unwrap();
    memory
        .write_obj(tables.root() | 1, GuestAddress(CONTEXTS))
        .unwrap();
    memory
        .write_obj(5_u64 << 8 | 2, GuestAddress(CONTEXTS + 8))
        .unwrap();
    let mut mapper = Mapper::new(
        tables,
        AlwaysResident,
        IovaAllocator::new(0, 1 << 40),
        Strategy::Strict,
    );
    let iovas = (0..1024)
        .map(|n| {
            let page = PageRange {
                address: 0x100_0000 + n * PAGE_SIZE,
                pages: 1,
            };
            mapper.map(page, Permissions::ReadWrite).unwrap()
        })
        .collect();
    unit.write(0x20, &ROOT.to_le_bytes()).unwrap();
    unit.write(0x18, &(1_u32 << 30).to_le_bytes()).unwrap();
    unit.write(0x18, &(1_u32 << 31).to_le_bytes()).unwrap();
    (unit.view(RequesterId(0)), iovas)
}

/// The peer: vm-memory's IOTLB behind the lock that its documentation suggests.
#[derive(Debug, Default)]
struct PeerIommu(RwLock<Iotlb>);

impl Iommu for PeerIommu {
    type IotlbGuard<'a> = RwLockReadGuard<'a, Iotlb>;

    fn translate(
        &self,
        iova: GuestAddress,
        length: usize,
        access: Permissions,
    ) -> Result<IotlbIterator<Self::IotlbGuard<'_>>, vm_memory::iommu::Error> {
        Ok(Iotlb::lookup(self.0.read().unwrap(), iova, length, access).unwrap())
    }
}

fn peer() -> (PeerIommu, Vec<u64>) {
    let iommu = PeerIommu::default();
    let iovas: Vec<u64> = (0..PAGES).map(|n| (1 << 39) + n * PAGE_SIZE).collect();
    for (n, iova) in (0..).zip(&iovas) {
        let target = GuestAddress(0x100_0000 + (PAGES - n) * PAGE_SIZE);
        let mut iotlb = iommu.0.write().unwrap();
        iotlb
            .set_mapping(GuestAddress(*iova), target, 4096, Permissions::ReadWrite)
            .unwrap();
    }
    (iommu, iovas)
}

/// Time of `iterations` calls on each of two threads.
fn on_two_threads(iterations: u64, work: impl Fn(u64) + Sync) -> Duration {
    let barrier = Barrier::new(2);
    thread::scope(|scope| {
        let threads = [0, 1].map(|_| {
            scope.spawn(|| {
                barrier.wait();
                let start = Instant::now();
                for i in 0..iterations {
                    work(i);
                }
                start.elapsed()
            })
        });
        threads
            .into_iter()
            .map(|t| t.join().unwrap())
            .max()
            .unwrap()
    })
}

fn pick(iovas: &[u64], i: u64) -> GuestAddress {
    let index = usize::try_from(i % PAGES).unwrap();
    GuestAddress(iovas.get(index).copied().unwrap() + 8)
}

fn translation(c: &mut Criterion) {
    let (view, iovas) = view();
    let (peer, peer_iovas) = peer();
    let mut group = c.benchmark_group("iotlb");
    let mut i = 0;
    let guard = view.memory();
    group.bench_function("hit", |b| {
        b.iter(|| {
            i += 1;
            guard
                .translate(black_box(pick(&iovas, i)), Access::Read)
                .unwrap()
        });
    });
    group.bench_function("hit, vm-memory", |b| {
        b.iter(|| {
            i += 1;
            let at = black_box(pick(&peer_iovas, i));
            peer.translate(at, 8, Permissions::Read)
                .unwrap()
                .next()
                .unwrap()
        });
    });
    group.bench_function("hit, 2 threads", |b| {
        b.iter_custom(|n| {
            on_two_threads(n, |i| {
                black_box(guard.translate(pick(&iovas, i), Access::Read).unwrap());
            })
        });
    });
    group.bench_function("hit, 2 threads, vm-memory", |b| {
        b.iter_custom(|n| {
            on_two_threads(n, |i| {
                let at = pick(&peer_iovas, i);
                black_box(
                    peer.translate(at, 8, Permissions::Read)
                        .unwrap()
                        .next()
                        .unwrap(),
                );
            })
        });
    });
    // Two pages 512 apart share a slot: each pushes the other out.
    let (first, last) = (
        iovas.first().copied().unwrap(),
        iovas.get(512).copied().unwrap(),
    );
    group.bench_function("miss, 4 levels", |b| {
        b.iter(|| {
            i += 1;
            let iova = if i % 2 == 0 { first } else { last };
            guard
                .translate(black_box(GuestAddress(iova)), Access::Read)
                .unwrap()
        });
    });
    group.bench_function("enter and leave", |b| b.iter(|| view.memory()));
    group.finish();

    let peer = IommuMemory::new(GuestMemoryMmap::<()>::clone(&memory()), peer, true, ());
    let mut group = c.benchmark_group("read 8 bytes");
    group.bench_function("view", |b| {
        b.iter(|| {
            i += 1;
            guard.read_obj::<u64>(pick(&iovas, i)).unwrap()
        });
    });
    group.bench_function("IommuMemory", |b| {
        b.iter(|| {
            i += 1;
            peer.read_obj::<u64>(pick(&peer_iovas, i)).unwrap()
        });
    });
    assert!(guard.check_range(pick(&iovas, 0), 8, Permissions::Read));
    group.finish();
}

criterion_group!(benches, translation);
criterion_main!(benches);
