//! What hooks, doorbells and accounting cost, and that they cost nothing beside the registers they are at.
#![expect(clippy::unwrap_used, reason = "a benchmark")]

use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use pio_mmio_bus::bus::{
    Access, AccessError, AddressSpace, Bus, BusDevice, Direction, Doorbell, Hook, Outcome, Verdict,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

struct Register;

impl BusDevice for Register {
    fn read(&self, _: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.copy_from_slice(&[1, 2, 3, 4]);
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), AccessError> {
        Ok(())
    }
}

struct Allow;

impl Hook for Allow {
    fn before(&self, _: &Access<'_>) -> Verdict {
        Verdict::Allow
    }
}

fn overlay(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("write");
    let mut bench = |name, bus: &Bus, address| {
        let mut reader = bus.reader();
        group.bench_function(name, |bencher| {
            bencher.iter(|| assert_eq!(reader.write(address, &[0; 4]), Outcome::Done));
        });
    };
    let bus = Bus::new(AddressSpace::Mmio).unwrap();
    let region = bus
        .insert(0, 0x1000, "register", Arc::new(Register))
        .unwrap();
    bench("plain", &bus, 0x100);
    bus.add_hook(region, 0x200..0x204, Direction::Both, Arc::new(Allow))
        .unwrap();
    bench("beside a hook", &bus, 0x100);
    bench("hooked", &bus, 0x200);
    let doorbell = Doorbell {
        width: None,
        datamatch: None,
        needs_value: false,
        eventfd: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
    };
    bus.add_doorbell(region, 0x300, doorbell).unwrap();
    bench("doorbell that nobody bound", &bus, 0x300);
    bus.set_accounting(true).unwrap();
    bench("accounting on", &bus, 0x100);
    bus.set_accounting(false).unwrap();
    bench("accounting off again", &bus, 0x100);
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    targets = overlay
}
criterion_main!(benches);
