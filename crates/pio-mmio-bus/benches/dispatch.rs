//! What a bus access costs: ours beside rust-vmm's `vm-device`, the obvious `RwLock<BTreeMap>`, and no bus, in one run.
//!
//! Random addresses out of 8, 64 and 512 regions, all hits or all misses, on one thread and on two. A figure is the time
//! that each thread runs for one access.
#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a benchmark"
)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::sync::{Arc, Barrier, RwLock};
use std::thread;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pio_mmio_bus::bus::{AccessError, AddressSpace, Bus, BusDevice, BusReader, Outcome};
use vm_device::DeviceMmio;
use vm_device::bus::{MmioAddress, MmioAddressOffset, MmioRange};
use vm_device::device_manager::{IoManager, MmioManager};

const SIZE: u64 = 0x200;
const STRIDE: u64 = 0x1000;
const BASE: u64 = 0xd000_0000;

/// More than a branch predictor can learn.
const ADDRESSES: usize = 1 << 16;

/// The same register behind each of the buses.
struct Register(u32);

impl BusDevice for Register {
    fn read(&self, _: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.copy_from_slice(&self.0.to_le_bytes());
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), AccessError> {
        Ok(())
    }
}

impl DeviceMmio for Register {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
        data.copy_from_slice(&self.0.to_le_bytes());
    }

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
}

/// A bus as one thread uses it. What is around a bus's own function is always inlined, so that it costs none of them anything.
trait Contender: Send {
    fn read(&mut self, address: u64, data: &mut [u8]) -> bool;
}

impl Contender for BusReader {
    #[inline(always)]
    fn read(&mut self, address: u64, data: &mut [u8]) -> bool {
        BusReader::read(self, address, data) == Outcome::Done
    }
}

impl Contender for Arc<IoManager> {
    #[inline(always)]
    fn read(&mut self, address: u64, data: &mut [u8]) -> bool {
        self.mmio_read(MmioAddress(address), data).is_ok()
    }
}

type Tree = Arc<RwLock<BTreeMap<u64, (u64, Arc<dyn BusDevice>)>>>;

impl Contender for Tree {
    #[inline(always)]
    fn read(&mut self, address: u64, data: &mut [u8]) -> bool {
        let tree = RwLock::read(self).expect("nobody panics");
        match tree.range(..=address).next_back() {
            Some((base, (size, device))) if address - base < *size => {
                device.read(address - base, data).is_ok()
            }
            _ => false,
        }
    }
}

/// No bus: the address says which device it is. What is left is the call of the device, the floor for all others.
struct Direct(Vec<Arc<dyn BusDevice>>);

impl Contender for Direct {
    #[inline(always)]
    fn read(&mut self, address: u64, data: &mut [u8]) -> bool {
        let number = usize::try_from((address - BASE) / STRIDE).unwrap();
        let offset = address % STRIDE;
        offset < SIZE && self.0[number].read(offset, data).is_ok()
    }
}

/// Pseudo-random addresses (xorshift64*), each inside a region or each outside.
fn addresses(regions: u64, hit: bool) -> Vec<u64> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    };
    (0..ADDRESSES)
        .map(|_| {
            let offset = if hit {
                next() % (SIZE / 4) * 4
            } else {
                SIZE + next() % SIZE
            };
            BASE + next() % regions * STRIDE + offset
        })
        .collect()
}

/// How long this thread has been running. Unlike the wall clock it stands still while others have the CPU.
fn cpu_time() -> Duration {
    let mut now = MaybeUninit::uninit();
    // SAFETY: clock_gettime(2) fills in the `timespec` that it is given.
    let now: libc::timespec = unsafe {
        assert_eq!(
            libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, now.as_mut_ptr()),
            0
        );
        now.assume_init()
    };
    Duration::new(
        now.tv_sec.try_into().unwrap(),
        now.tv_nsec.try_into().unwrap(),
    )
}

/// The time for `rounds` accesses on each of the threads.
fn time<C: Contender>(contenders: &mut [C], addresses: &[u64], hit: bool, rounds: u64) -> Duration {
    let start = Barrier::new(contenders.len());
    thread::scope(|scope| {
        let threads: Vec<_> = contenders
            .iter_mut()
            .enumerate()
            .map(|(number, contender)| {
                let start = &start;
                scope.spawn(move || {
                    let (tail, head) = addresses.split_at(ADDRESSES / 2 * number);
                    start.wait();
                    let begun = cpu_time();
                    let mut left = rounds;
                    while left > 0 {
                        for address in head.iter().chain(tail).take(usize::try_from(left).unwrap())
                        {
                            let mut data = [0; 4];
                            assert_eq!(contender.read(*address, &mut data), hit);
                            black_box(data);
                        }
                        left = left.saturating_sub(ADDRESSES as u64);
                    }
                    cpu_time() - begun
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .max()
            .unwrap_or_default()
    })
}

fn dispatch(criterion: &mut Criterion) {
    for threads in [1, 2] {
        for hit in [true, false] {
            let mut group = criterion.benchmark_group(format!(
                "{}/{threads} thread{}",
                if hit { "hit" } else { "miss" },
                if threads == 1 { "" } else { "s" },
            ));
            for regions in [8, 64, 512] {
                let addresses = addresses(regions, hit);
                let bus = Bus::new(AddressSpace::Mmio).expect("membarrier");
                let mut manager = IoManager::new();
                let tree = Tree::default();
                let mut devices: Vec<Arc<dyn BusDevice>> = Vec::new();
                for number in 0..regions {
                    let base = BASE + number * STRIDE;
                    let device = Arc::new(Register(0x1234_5678));
                    bus.insert(base, SIZE, "register", device.clone())
                        .expect("vacant");
                    let range = MmioRange::new(MmioAddress(base), SIZE).expect("a range");
                    manager
                        .register_mmio(range, device.clone())
                        .expect("vacant");
                    devices.push(device.clone());
                    tree.write()
                        .expect("nobody panics")
                        .insert(base, (SIZE, device));
                }
                let manager = Arc::new(manager);
                let mut bench = |name, run: &mut dyn FnMut(u64) -> Duration| {
                    group.bench_function(BenchmarkId::new(name, regions), |bencher| {
                        bencher.iter_custom(&mut *run)
                    });
                };
                let mut ours: Vec<_> = (0..threads).map(|_| bus.reader()).collect();
                bench("pio-mmio-bus", &mut |rounds| {
                    time(&mut ours, &addresses, hit, rounds)
                });
                let mut direct: Vec<_> = (0..threads).map(|_| Direct(devices.clone())).collect();
                bench("no bus", &mut |rounds| {
                    time(&mut direct, &addresses, hit, rounds)
                });
                let mut theirs = vec![manager; threads];
                bench("vm-device", &mut |rounds| {
                    time(&mut theirs, &addresses, hit, rounds)
                });
                let mut plain = vec![tree; threads];
                bench("RwLock<BTreeMap>", &mut |rounds| {
                    time(&mut plain, &addresses, hit, rounds)
                });
            }
            group.finish();
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    targets = dispatch
}
criterion_main!(benches);
