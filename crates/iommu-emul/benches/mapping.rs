//! The mapping layer: the IOVA allocator at 1 and at 1 M live ranges, and map + unmap of one page by each strategy, the IOMMU being
//! a recording one (bookkeeping alone) or a unit in the same process.

#![expect(clippy::unwrap_used, reason = "benchmark")]

use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use iommu_emul::{
    mapping::{
        AlwaysResident, BackendError, IovaAllocator, Mapper, PAGE_SIZE, PageRange, PhysicalIommu,
        QueuedInvalidation, SecondStageTables, Strategy, Ticket,
    },
    vtd::{Config, Unit},
};
use pio_mmio_bus::{
    bus::BusDevice,
    interrupt::{InterruptError, MsiMessage, MsiSink},
};
use std::time::Duration;
use vm_memory::{GuestAddress, GuestMemoryMmap, Permissions};

struct Sink;

impl MsiSink for Sink {
    fn send(&self, _message: MsiMessage) -> Result<(), InterruptError> {
        Ok(())
    }
}

/// An IOMMU that costs nothing.
struct Free;

impl PhysicalIommu for Free {
    fn map(&self, _: PageRange, _: u64, _: Permissions) -> Result<(), BackendError> {
        Ok(())
    }

    fn unmap(&self, _: PageRange) -> Result<(), BackendError> {
        Ok(())
    }

    fn invalidate(&self, _: Option<PageRange>) -> Ticket {
        Ticket(0)
    }

    fn done(&self, _: Ticket) -> bool {
        true
    }
}

fn iova(c: &mut Criterion) {
    let mut group = c.benchmark_group("IOVA allocate + free");
    for live in [1, 1_000_000] {
        let mut iovas = IovaAllocator::new(0, 1 << 48);
        let mut held: Vec<(u64, u64)> = (0..live)
            .map(|n| (iovas.allocate(1 + n % 4).unwrap(), 1 + n % 4))
            .collect();
        // Something freed in between, as after a while of use.
        for (address, pages) in held.split_off(held.len() - held.len() / 10) {
            iovas.free(address, pages);
        }
        let mut n = 0;
        group.bench_function(format!("{live} live"), |b| {
            b.iter(|| {
                n += 1;
                let pages = 1 + n % 4;
                let address = iovas.allocate(pages).unwrap();
                iovas.free(address, pages);
            });
        });
    }
    group.finish();
}

fn strategies() -> [(&'static str, Strategy); 4] {
    [
        ("strict", Strategy::Strict),
        ("deferred", Strategy::LINUX_DEFERRED),
        ("asynchronous", Strategy::Asynchronous),
        (
            "optimistic, hit",
            Strategy::Optimistic {
                quota: 256,
                age: Duration::from_millis(10),
            },
        ),
    ]
}

fn page(n: u64) -> PageRange {
    PageRange {
        address: 0x100_0000 + n % 128 * PAGE_SIZE,
        pages: 1,
    }
}

fn bookkeeping(c: &mut Criterion) {
    let mut group = c.benchmark_group("map + unmap, bookkeeping");
    for (name, strategy) in strategies() {
        let iovas = IovaAllocator::new(0, 1 << 32);
        let mut mapper = Mapper::new(Free, AlwaysResident, iovas, strategy);
        let mut n = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                n += 1;
                let iova = mapper.map(page(n), Permissions::ReadWrite).unwrap();
                mapper.unmap(iova).unwrap();
            });
        });
    }
    group.finish();
}

/// The "bare" arm: tables in memory and the unit's own invalidation queue, its tail written by a call.
fn unit(c: &mut Criterion) {
    let mut group = c.benchmark_group("map + unmap, unit in process");
    for (name, strategy) in strategies() {
        let memory: Arc<GuestMemoryMmap> =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap());
        let unit = Unit::new(
            Config::default().capabilities().unwrap(),
            memory.clone(),
            Arc::new(Sink),
        );
        unit.write(0x90, &0x8000_u64.to_le_bytes()).unwrap();
        unit.write(0x18, &(1_u32 << 26).to_le_bytes()).unwrap();
        let queue = QueuedInvalidation::new(memory.clone(), 0x8000, 0x9000, 5, |tail: u64| {
            unit.write(0x88, &tail.to_le_bytes()).unwrap();
        });
        let space = PageRange {
            address: 0x10_0000,
            pages: 64,
        };
        let tables = SecondStageTables::new(memory, queue, 4, space);
        let mut mapper = Mapper::new(
            tables,
            AlwaysResident,
            IovaAllocator::new(0, 1 << 32),
            strategy,
        );
        let mut n = 0;
        group.bench_function(name, |b| {
            b.iter_batched(
                || {
                    n += 1;
                    page(n)
                },
                |page| {
                    let iova = mapper.map(page, Permissions::ReadWrite).unwrap();
                    mapper.unmap(iova).unwrap();
                },
                BatchSize::SmallInput,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, iova, bookkeeping, unit);
criterion_main!(benches);
