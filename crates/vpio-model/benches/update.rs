//! What a model costs: one update of each, and an access that needs none, through the bus with the model and without.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a benchmark")]

use criterion::{Criterion, criterion_group, criterion_main};

mod cases;

fn updates(c: &mut Criterion) {
    let mut group = c.benchmark_group("two updates");
    for case in &cases::CASES {
        let mut updates = case.updates();
        group.bench_function(case.name, |b| b.iter(&mut updates));
    }
    group.finish();
}

fn unhooked(c: &mut Criterion) {
    let mut group = c.benchmark_group("data port through the bus");
    for (name, modelled) in [("with the model", true), ("without", false)] {
        let mut reader = cases::on_bus(modelled);
        group.bench_function(name, |b| b.iter(|| cases::write_data(&mut reader)));
    }
    group.finish();
}

criterion_group!(benches, updates, unhooked);
criterion_main!(benches);
