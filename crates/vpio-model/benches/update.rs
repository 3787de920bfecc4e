//! What a model costs: one update of each, and an access that needs none, through the bus with the model and without.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a benchmark")]

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use criterion::{Criterion, criterion_group, criterion_main};
use pio_mmio_bus::bus::{AccessError, AddressSpace, Bus, BusDevice};
use vpio_model::bus::Region;
use vpio_model::engine::{At, Engine, Passthrough, Physical, Translation};
use vpio_model::in_process::Memory;
use vpio_model::model::Model;
use vpio_model::models;

/// One register that is every register.
#[derive(Default)]
struct Card(AtomicU64);

impl Physical for Card {
    fn read(&self, _space: u8, _offset: u64, _width: u8) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn write(&self, _space: u8, _offset: u64, _width: u8, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    fn reset(&self) {}
}

/// The card without a model.
struct Bare(Arc<Card>);

impl BusDevice for Bare {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let value = self.0.read(0, offset, 1).to_le_bytes();
        data.iter_mut().zip(value).for_each(|(to, from)| *to = from);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let mut word = [0; 8];
        word.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        self.0.write(0, offset, 1, u64::from_le_bytes(word));
        Ok(())
    }
}

fn engine(text: &str) -> Engine<Arc<Memory>> {
    let model = Model::parse("bench", text).unwrap_or_else(|error| panic!("{error}"));
    let shadow = usize::try_from(model.shadow_bytes()).unwrap();
    let translation = Translation::Identity { size: 1 << 20 };
    let memory = Memory::new(1 << 20, translation, shadow, 1 << 32);
    Engine::new(Arc::new(model), Arc::new(memory))
}

type Write = (u64, u8, u64);

/// For each model: how to get it going, then a write that its driver makes all the time, and how to undo it.
const CASES: [(&str, &str, &[Write], [Write; 2]); 6] = [
    (
        "ne2000 CR",
        models::NE2000,
        &[(9, 1, 0x40), (1, 1, 0x46), (2, 1, 0x80)],
        [(0, 1, 0x22), (0, 1, 0x0a)],
    ),
    (
        "rtl8139 TSD",
        models::RTL8139,
        &[(0x20, 4, 0x1000)],
        [(0x10, 4, 60), (0x10, 4, 0x2000)],
    ),
    (
        "rtl8139cp POLL",
        models::RTL8139CP,
        &[(0xe0, 2, 3), (0x37, 1, 0xc)],
        [(0xd9, 1, 0), (0xd9, 1, 1)],
    ),
    (
        "e1000 TDT",
        models::E1000,
        &[(0x3808, 4, 128)],
        [(0x3818, 4, 1), (0x3818, 4, 2)],
    ),
    (
        "ahci CMD",
        models::AHCI,
        &[],
        [(0x118, 4, 1), (0x118, 4, 0)],
    ),
    (
        "piix PRDT",
        models::PIIX_BMIDE,
        &[],
        [(4, 4, 0x1000), (4, 4, 0x2000)],
    ),
];

fn updates(c: &mut Criterion) {
    let mut group = c.benchmark_group("update");
    for (name, text, setup, writes) in CASES {
        let mut engine = engine(text);
        let card = Card(AtomicU64::new(u64::MAX));
        let at = |offset, width| At {
            space: 0,
            offset,
            width,
        };
        for &(offset, width, value) in setup {
            engine.write(at(offset, width), value, &card).unwrap();
        }
        let [one, other] = writes.map(|(offset, width, value)| (at(offset, width), value));
        group.bench_function(name, |b| {
            b.iter(|| {
                // Two updates: half of what is shown is one.
                black_box(engine.write(black_box(one.0), black_box(one.1), &card)).unwrap();
                black_box(engine.write(black_box(other.0), black_box(other.1), &card)).unwrap();
            });
        });
    }
    group.finish();
}

fn unhooked(c: &mut Criterion) {
    let card = Arc::new(Card::default());
    let device = Passthrough::new(engine(models::NE2000), card.clone());
    let region = Region::new(Arc::new(Mutex::new(device)), 0, Arc::new(()));
    let mut group = c.benchmark_group("data port through the bus");
    let bare: Arc<dyn BusDevice> = Arc::new(Bare(card));
    for (name, device) in [
        ("with the model", Arc::new(region) as Arc<dyn BusDevice>),
        ("without", bare),
    ] {
        let bus = Bus::new(AddressSpace::Pio).unwrap();
        bus.insert(0x300, 256, "card", device).unwrap();
        let mut reader = bus.reader();
        group.bench_function(name, |b| {
            b.iter(|| reader.write(black_box(0x310), black_box(&[1, 2])));
        });
    }
    group.finish();
}

criterion_group!(benches, updates, unhooked);
criterion_main!(benches);
