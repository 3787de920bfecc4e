//! Device models: texts that may be none, events that may be anything, guests that take turns.

use std::fmt::Debug;
use std::sync::{Arc, LazyLock};

use vpio_model::arbiter::{Arbiter, Handover, InputPolicy, Sharing};
use vpio_model::engine::{At, Dma, Engine, Passthrough, Translation};
use vpio_model::in_process::{Memory, Registers};
use vpio_model::model::{self, Model};
use vpio_model::models;

use crate::input::Input;

/// Guest memory.
const SIZE: u64 = 0x1_0000;
/// Where the device sees it, and the shadows.
const GUEST: u64 = 0x1000_0000;
const SHADOW: u64 = 0x8000_0000;

impl Input<'_> {
    /// An address in guest memory, or near its end, or a few bits, or anything.
    fn value(&mut self) -> u64 {
        let kind = self.byte();
        let low = u64::from(self.byte());
        match kind % 5 {
            0 => low << 8,
            1 => SIZE - low,
            2 => low,
            3 => low << (kind >> 2),
            _ => self.u64(),
        }
    }

    fn at(&mut self) -> At {
        let space = self.byte();
        At {
            // Mostly the first.
            space: if space < 0xf0 { 0 } else { space & 3 },
            offset: u64::from(self.byte()) | u64::from(space & 0x3f) << 8,
            width: 1 << (self.byte() & 3),
        }
    }
}

fn engine(model: &Arc<Model>) -> Option<Engine<Arc<Memory>>> {
    let shadow = usize::try_from(model.shadow_bytes()).ok()?;
    let translation = Translation::Offset {
        base: GUEST,
        size: SIZE,
    };
    let memory = Memory::new(usize::try_from(SIZE).ok()?, translation, shadow, SHADOW);
    Some(Engine::new(model.clone(), Arc::new(memory)))
}

/// One of the crate's models, and what one guest needs of it.
fn chosen(input: &mut Input<'_>) -> Option<[Arc<Model>; 2]> {
    // Read once: that takes far longer than what an input does to them.
    static MODELS: LazyLock<Vec<[Arc<Model>; 2]>> = LazyLock::new(|| {
        let read = models::ALL
            .iter()
            .map(|(path, text)| Model::parse(path, text));
        let both = read.flatten().map(|model| {
            let one = model.for_sharing(model::Sharing::Exclusive);
            [model.for_sharing(model::Sharing::Shared), one].map(Arc::new)
        });
        both.collect()
    });
    let number = usize::from(input.byte()) % models::ALL.len();
    MODELS.get(number).cloned()
}

/// Reads a text; checks and hooks what is a model, shows what is not.
///
/// # Panics
///
/// On a finding.
pub fn vpio_text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    match Model::parse("fuzz.vpio", text) {
        Ok(model) => {
            let report = model.check(20);
            assert!(model.graph(&report).starts_with("digraph"));
            let exclusive = model.hooks(model::Sharing::Exclusive).registers.len();
            let shared = model.hooks(model::Sharing::Shared).registers.len();
            assert!(
                exclusive <= shared,
                "one guest needs no more hooks than two"
            );
        }
        Err(error) => {
            assert!(!error.diagnostics.is_empty());
            assert!(error.to_string().contains("error"));
        }
    }
}

/// A device behind a model, and the guest's memory.
struct Behind {
    memory: Arc<Memory>,
    card: Arc<Registers>,
    device: Passthrough<Arc<Memory>, Arc<Registers>>,
}

impl Behind {
    fn new(model: &Arc<Model>) -> Option<Self> {
        let engine = engine(model)?;
        let card = Arc::new(Registers::default());
        Some(Self {
            memory: engine.dma().clone(),
            device: Passthrough::new(engine, card.clone()),
            card,
        })
    }
}

/// The same, done to both; the result, which is the same.
fn both<T: PartialEq + Debug>(
    devices: &mut [Behind; 2],
    mut act: impl FnMut(&mut Behind) -> T,
) -> T {
    let [several, one] = devices.each_mut().map(&mut act);
    assert_eq!(several, one, "one guest sees a difference");
    one
}

/// A guest that does anything to one of the models, and to what one guest needs of it.
///
/// # Panics
///
/// On a finding.
pub fn vpio_engine(data: &[u8]) {
    let mut input = Input(data);
    let Some([model, one]) = chosen(&mut input) else {
        return;
    };
    let (Some(whole), Some(one)) = (Behind::new(&model), Behind::new(&one)) else {
        return;
    };
    let devices = &mut [whole, one];
    while !input.0.is_empty() {
        match input.byte() % 8 {
            0..=3 => {
                let (at, value) = (input.at(), input.value());
                let before = devices.each_ref().map(|one| one.device.engine().save());
                if both(devices, |one| one.device.write(at, value)).is_err() {
                    let after = devices.each_ref().map(|one| one.device.engine().save());
                    assert_eq!(after, before, "a denied event changes nothing");
                }
            }
            4 => {
                let at = input.at();
                let _denied = both(devices, |one| one.device.read(at));
            }
            5 => {
                let (at, bytes) = (input.value(), input.u64());
                both(devices, |one| {
                    // What comes back from the device comes before, in both.
                    let _denied = one.device.timer();
                    one.memory.write(at, &bytes.to_le_bytes())
                });
            }
            6 => {
                // The device shows something, or wrote a descriptor.
                let (at, value) = (input.at(), input.value());
                let byte = input.byte();
                both(devices, |one| {
                    let _denied = one.device.timer();
                    one.card.set(at.space, at.offset, value);
                    one.memory.write_shadow(value, &[byte]);
                });
            }
            _ => {
                let _denied = both(devices, |one| {
                    (one.device.interrupt().is_ok(), one.device.timer().is_ok())
                });
            }
        }
    }
    let [Behind { device, .. }, _] = devices;
    let state = device.engine().save();
    let resumed = device.suspend().and_then(|state| device.resume(&state));
    if resumed.is_err() {
        device.reset();
    }
    let Some(mut other) = engine(&model) else {
        return;
    };
    assert!(
        other.restore(&state).is_ok(),
        "a model's own state was refused"
    );
    assert_eq!(other.save(), state);
}

/// Three guests that share a device, each doing anything.
///
/// # Panics
///
/// On a finding.
pub fn vpio_arbiter(data: &[u8]) {
    let mut input = Input(data);
    let Some([model, _]) = chosen(&mut input) else {
        return;
    };
    let card = Arc::new(Registers::default());
    let policies = [InputPolicy::Hold, InputPolicy::Drop, InputPolicy::Switch];
    let input_policy = policies
        .get(usize::from(input.byte() % 3))
        .copied()
        .unwrap_or(InputPolicy::Drop);
    let sharing = Sharing {
        quantum: u64::from(input.byte() % 4),
        patience: 16,
        input: input_policy,
    };
    let mut arbiter = Arbiter::new(card.clone(), sharing);
    let mut guests: Vec<_> = (0..3)
        .filter_map(|_| engine(&model))
        .map(|engine| arbiter.add(engine, Box::new(|_: &Handover| {})))
        .collect();
    let mut now = 0;
    while !input.0.is_empty() && !guests.is_empty() {
        let which = usize::from(input.byte()) % guests.len();
        let Some(&guest) = guests.get(which) else {
            return;
        };
        match input.byte() % 16 {
            0..=8 => {
                let (at, value) = (input.at(), input.value());
                if arbiter.enter(guest) {
                    assert_eq!(arbiter.owner(), Some(guest));
                    let _denied = arbiter.write(guest, at, value);
                    arbiter.leave(guest);
                } else {
                    assert_ne!(arbiter.owner(), Some(guest));
                    assert!(arbiter.write(guest, at, value).is_err(), "not its turn");
                }
            }
            9 | 10 => {
                let (at, value) = (input.at(), input.value());
                card.set(at.space, at.offset, value);
            }
            11 => {
                let _fate = arbiter.input(guest);
                arbiter.take_held(guest);
            }
            12 if guests.len() > 1 => {
                arbiter.remove(guest);
                guests.swap_remove(which);
                assert_ne!(arbiter.owner(), Some(guest));
            }
            13 => {
                assert_eq!(arbiter.interrupt(), arbiter.owner());
            }
            _ => {
                now += u64::from(input.byte() % 8);
                arbiter.tick(now);
            }
        }
    }
    // Whoever waits and comes when it is woken gets the device in the end: each tick, patience has passed for who waits longest.
    for guest in guests {
        let mut entered = arbiter.enter(guest);
        for _ in 0..4 {
            if !entered {
                now += 16;
                arbiter.tick(now);
                entered = arbiter.enter(guest);
            }
        }
        assert!(entered, "starved");
        arbiter.leave(guest);
    }
}
