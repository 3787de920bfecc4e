//! What is left of a model for one guest denies and forwards what the whole model does.

mod common;

use std::sync::{Arc, LazyLock};

use common::{Machine, SIZE, parse};
use proptest::prelude::*;
use vpio_model::engine::At;
use vpio_model::model::{Model, Sharing};
use vpio_model::models;

/// Where something is known, in either direction.
fn places(model: &Model) -> Vec<At> {
    let hooks = model.hooks(Sharing::Shared);
    let known = hooks.registers.iter().map(|hook| At {
        space: hook.space,
        offset: hook.offset,
        width: hook.width,
    });
    known.collect()
}

/// A number that registers hold: few bits, an address in guest memory, one outside, or anything.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => any::<u8>().prop_map(u64::from),
        2 => (0..SIZE / 256).prop_map(|page| page * 256),
        1 => (0..32_u32).prop_map(|bit| 1 << bit),
        1 => any::<u32>().prop_map(u64::from),
    ]
}

/// A model, what is left of it, and where something is known.
type Pair = (Arc<Model>, Arc<Model>, Vec<At>);

/// Each of the models.
static PAIRS: LazyLock<Vec<Pair>> = LazyLock::new(|| {
    let pairs = models::ALL.iter().map(|(_, text)| {
        let model = parse(text);
        let less = model.for_sharing(Sharing::Exclusive);
        let places = places(&model);
        (Arc::new(model), Arc::new(less), places)
    });
    pairs.collect()
});

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    #[test]
    fn one_guest_sees_no_difference(
        steps in proptest::collection::vec((any::<prop::sample::Index>(), 0..16_u8, value()), 1..80),
    ) {
        for (model, less, places) in &*PAIRS {
            let path = model.name();
            let [mut whole, mut less] = [model, less].map(|model| Machine::of(model.clone()));
            for (place, how, value) in &steps {
                let mut at = *place.get(places);
                let value = value & u64::MAX >> (64 - 8 * u32::from(at.width));
                match how {
                    0 => at.width = 1 << (value & 3),
                    1 => at.offset ^= 1 << (value & 7),
                    _ => {}
                }
                let shown = format!("{path} {at:x?} {value:#x}");
                match how {
                    0..10 => {
                        let results = [&mut whole, &mut less].map(|one| one.device.write(at, value));
                        prop_assert_eq!(&results[0], &results[1], "{}", shown);
                    }
                    10..12 => {
                        let results = [&mut whole, &mut less].map(|one| one.device.read(at));
                        prop_assert_eq!(&results[0], &results[1], "{}", shown);
                    }
                    12 => {
                        for one in [&mut whole, &mut less] {
                            one.registers.set(at.space, at.offset, value);
                        }
                    }
                    13 => {
                        for one in [&mut whole, &mut less] {
                            // What comes back from the device comes before, in both.
                            let _denied = one.device.timer();
                            let address = value % (SIZE - 8);
                            one.store(address, &value.to_le_bytes());
                        }
                    }
                    _ => {
                        let results = [&mut whole, &mut less].map(|one| one.device.interrupt());
                        prop_assert_eq!(&results[0], &results[1], "{}", shown);
                    }
                }
                for place in places {
                    let given = [&whole, &less].map(|one| one.registers.get(place.space, place.offset));
                    prop_assert_eq!(given[0], given[1], "{}", shown);
                }
                let (all, left) = (whole.device.engine().save(), less.device.engine().save());
                for (name, value) in &left.variables {
                    prop_assert_eq!(all.variables.get(name), Some(value), "{} {}", shown, name);
                }
                let (all, left) = (whole.device.counts(), less.device.counts());
                prop_assert!(left.hooked <= all.hooked, "{}", shown);
            }
        }
    }
}

/// With one guest, an NE2000 is driven by the bank, by starting and stopping, and by where the ring is.
#[test]
fn what_one_guest_needs_of_an_ne2000() {
    let model = parse(models::NE2000).for_sharing(Sharing::Exclusive);
    let mut card = Machine::of(Arc::new(model));
    let state = card.device.engine().save();
    let names: Vec<&str> = state.variables.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        ["core", "monitor", "page", "pstart", "pstop", "ring"]
    );
    let mut hooked = |offset, value| {
        let before = card.device.counts().hooked;
        let _denied = card.write(offset, 1, value);
        card.device.counts().hooked - before
    };
    // Stopped at first; the ring, and where packets go.
    assert_eq!(hooked(0, 0x21), 0);
    assert_eq!(
        [hooked(1, 0x46), hooked(2, 0x80), hooked(0xc, 0x04)],
        [1, 1, 1]
    );
    assert_eq!(
        [hooked(0xc, 0x04), hooked(0xe, 0x49), hooked(0xf, 0x3f)],
        [0, 0, 0]
    );
    assert_eq!([hooked(0, 0x22), hooked(0, 0x22)], [1, 0]);
    // Remote DMA and transmission.
    assert_eq!(
        [hooked(0, 0x0a), hooked(0, 0x12), hooked(0, 0x26)],
        [0, 0, 0]
    );
    assert_eq!([hooked(4, 0x40), hooked(4, 0xff)], [0, 1]);
    // Another bank, where the same place is another register, and back.
    assert_eq!(
        [hooked(0, 0x62), hooked(7, 0x4c), hooked(7, 0xff)],
        [1, 0, 1]
    );
    assert_eq!([hooked(0, 0x22), hooked(7, 0xff)], [1, 0]);
    // What is not the model's.
    assert_eq!([hooked(0, 0xe2), hooked(0x1c, 0)], [1, 1]);
    assert!(
        !card.device.is_reusable(),
        "nobody else is there to have it"
    );
}
