//! The device side beside `virtio-queue`.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "benchmark"
)]

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

mod workload;

fn device(c: &mut Criterion) {
    for (shape, batch) in workload::CASES {
        let mut group = c.benchmark_group(format!("{shape}/batch {batch}"));
        group.throughput(Throughput::Elements(batch.into()));
        let memory = workload::memory();
        group.bench_function("split", |b| b.iter(workload::split(&memory, shape, batch)));
        group.bench_function("packed", |b| {
            b.iter(workload::packed(&memory, shape, batch))
        });
        group.bench_function("virtio-queue", |b| {
            b.iter(workload::peer(&memory, shape, batch))
        });
        group.finish();
    }
}

fn criterion() -> Criterion {
    let (warm_up, measurement) = (Duration::from_millis(300), Duration::from_secs(1));
    Criterion::default()
        .sample_size(20)
        .warm_up_time(warm_up)
        .measurement_time(measurement)
}

criterion_group! { name = benches; config = criterion(); targets = device }
criterion_main!(benches);
