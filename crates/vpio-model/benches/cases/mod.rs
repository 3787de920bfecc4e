//! What is measured: for each model a driver's most frequent accesses, and a data port on a bus.

use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use pio_mmio_bus::bus::{AccessError, AddressSpace, Bus, BusDevice, BusReader};
use vpio_model::bus::Region;
use vpio_model::engine::{At, Engine, Passthrough, Physical, Translation};
use vpio_model::in_process::Memory;
use vpio_model::model::{Model, Sharing};
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
        let value = match *data {
            [a] => a.into(),
            [a, b] => u16::from_le_bytes([a, b]).into(),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]).into(),
            _ => {
                return Err(AccessError::Width {
                    offset,
                    width: data.len(),
                });
            }
        };
        self.0.write(0, offset, 1, value);
        Ok(())
    }
}

fn engine(text: &str, sharing: Sharing) -> Engine<Arc<Memory>> {
    let model = Model::parse("bench", text).unwrap_or_else(|error| panic!("{error}"));
    let model = model.for_sharing(sharing);
    let shadow = usize::try_from(model.shadow_bytes()).unwrap();
    let translation = Translation::Identity { size: 1 << 20 };
    let memory = Memory::new(1 << 20, translation, shadow, 1 << 32);
    Engine::new(Arc::new(model), Arc::new(memory))
}

type Write = (u64, u8, u64);

/// A model: how to get it going, then a write that its driver makes all the time, and how to undo it. Of an NE2000 with one guest, the first
/// case changes nothing: remote DMA begins.
pub struct Case {
    pub name: &'static str,
    text: &'static str,
    sharing: Sharing,
    setup: &'static [Write],
    writes: [Write; 2],
}

pub const CASES: [Case; 8] = [
    Case {
        name: "ne2000 CR",
        text: models::NE2000,
        sharing: Sharing::Exclusive,
        setup: &[(9, 1, 0x40), (1, 1, 0x46), (2, 1, 0x80)],
        writes: [(0, 1, 0x22), (0, 1, 0x0a)],
    },
    Case {
        name: "ne2000 CR page",
        text: models::NE2000,
        sharing: Sharing::Exclusive,
        setup: &[(9, 1, 0x40), (1, 1, 0x46), (2, 1, 0x80)],
        writes: [(0, 1, 0x22), (0, 1, 0x62)],
    },
    Case {
        name: "ne2000 CR shared",
        text: models::NE2000,
        sharing: Sharing::Shared,
        setup: &[(9, 1, 0x40), (1, 1, 0x46), (2, 1, 0x80)],
        writes: [(0, 1, 0x22), (0, 1, 0x62)],
    },
    Case {
        name: "rtl8139 TSD",
        text: models::RTL8139,
        sharing: Sharing::Exclusive,
        setup: &[(0x20, 4, 0x1000)],
        writes: [(0x10, 4, 60), (0x10, 4, 0x2000)],
    },
    Case {
        name: "rtl8139cp POLL",
        text: models::RTL8139CP,
        sharing: Sharing::Exclusive,
        setup: &[(0xe0, 2, 3), (0x37, 1, 0xc)],
        writes: [(0xd9, 1, 0), (0xd9, 1, 1)],
    },
    Case {
        name: "e1000 TDT",
        text: models::E1000,
        sharing: Sharing::Exclusive,
        setup: &[(0x3808, 4, 128)],
        writes: [(0x3818, 4, 1), (0x3818, 4, 2)],
    },
    Case {
        name: "ahci CMD",
        text: models::AHCI,
        sharing: Sharing::Exclusive,
        setup: &[],
        writes: [(0x118, 4, 1), (0x118, 4, 0)],
    },
    Case {
        name: "piix PRDT",
        text: models::PIIX_BMIDE,
        sharing: Sharing::Exclusive,
        setup: &[],
        writes: [(4, 4, 0x1000), (4, 4, 0x2000)],
    },
];

impl Case {
    /// What makes two updates of the model.
    pub fn updates(&self) -> impl FnMut() {
        let mut engine = engine(self.text, self.sharing);
        let card = Card(AtomicU64::new(u64::MAX));
        let at = |offset, width| At {
            space: 0,
            offset,
            width,
        };
        for &(offset, width, value) in self.setup {
            engine.write(at(offset, width), value, &card).unwrap();
        }
        let writes = self
            .writes
            .map(|(offset, width, value)| (at(offset, width), value));
        move || {
            for (at, value) in writes {
                engine
                    .write(black_box(at), black_box(value), &card)
                    .map(black_box)
                    .unwrap();
            }
        }
    }
}

/// A card on a bus, behind the NE2000's model or not.
pub fn on_bus(modelled: bool) -> BusReader {
    let card = Arc::new(Card::default());
    let bus = Bus::new(AddressSpace::Pio).unwrap();
    if modelled {
        let device = Passthrough::new(engine(models::NE2000, Sharing::Exclusive), card);
        let region = Region::new(Arc::new(Mutex::new(device)), 0, Arc::new(()));
        region.insert(&bus, 0x300, "card").unwrap();
    } else {
        let device = Arc::new(Bare(card));
        bus.insert(0x300, 256, "card", device).unwrap();
    }
    bus.reader()
}

/// Writes the card's data port.
pub fn write_data(reader: &mut BusReader) {
    let _outcome = reader.write(black_box(0x310), black_box(&[1, 2]));
}
