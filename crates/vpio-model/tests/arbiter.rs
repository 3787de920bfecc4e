//! One card, several guests.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::{SIZE, parse};
use vpio_model::arbiter::{Arbiter, Counts, GuestId, Input, InputPolicy, Sharing};
use vpio_model::engine::{At, Engine, Translation};
use vpio_model::in_process::{Memory, Registers};
use vpio_model::models;

type Shared = Arbiter<Arc<Memory>, Arc<Registers>>;

struct Fixture {
    arbiter: Shared,
    card: Arc<Registers>,
    guests: [GuestId; 2],
    woken: [Arc<AtomicU64>; 2],
}

fn fixture(text: &str, input: InputPolicy) -> Fixture {
    let card = Arc::new(Registers::default());
    let sharing = Sharing {
        quantum: 2,
        patience: 100,
        input,
    };
    let mut arbiter = Arbiter::new(card.clone(), sharing);
    let model = Arc::new(parse(text));
    let woken = [(), ()].map(|()| Arc::new(AtomicU64::new(0)));
    let guests = [0, 1].map(|i: usize| {
        let translation = Translation::Offset {
            base: 0x1000_0000 * (1 + i as u64),
            size: SIZE,
        };
        let shadow = usize::try_from(model.shadow_bytes()).unwrap();
        let memory = Memory::new(1 << 20, translation, shadow, 0x8000_0000);
        let woken = woken[i].clone();
        let wake = move || {
            woken.fetch_add(1, Ordering::Relaxed);
        };
        arbiter.add(Engine::new(model.clone(), Arc::new(memory)), Box::new(wake))
    });
    Fixture {
        arbiter,
        card,
        guests,
        woken,
    }
}

impl Fixture {
    /// It is so late, and a quantum before was a tick.
    fn pass(&mut self, now: u64) {
        self.arbiter.tick(now - 2);
        self.arbiter.tick(now);
    }

    /// Whether the guest had the device.
    fn write(&mut self, guest: usize, offset: u64, width: u8, value: u64) -> bool {
        let guest = self.guests[guest];
        let at = At {
            space: 0,
            offset,
            width,
        };
        if !self.arbiter.enter(guest) {
            return false;
        }
        self.arbiter.write(guest, at, value).unwrap();
        self.arbiter.leave(guest);
        true
    }
}

/// THREATS.md, "switching a device that is not reusable".
#[test]
fn a_busy_device_keeps_its_owner() {
    let mut f = fixture(models::RTL8139, InputPolicy::Drop);
    assert!(f.write(0, 0x20, 4, 0x1000));
    assert!(f.write(0, 0x10, 4, 60));
    f.pass(10);
    assert!(!f.write(1, 0x20, 4, 0x3000), "the slot is being sent");
    assert_eq!(f.arbiter.owner(), Some(f.guests[0]));
    // Sent; the other slots were never used.
    for slot in 0..4 {
        f.card.set(0, 0x10 + 4 * slot, 0x2000);
    }
    f.pass(12);
    assert_eq!(f.arbiter.owner(), Some(f.guests[1]));
    assert_eq!(f.woken[1].load(Ordering::Relaxed), 1);
    assert!(f.write(1, 0x20, 4, 0x3000));
    assert_eq!(f.card.get(0, 0x20), Some(0x2000_3000), "its own memory");
    assert_eq!(
        f.arbiter.counts(),
        Counts {
            switches: 1,
            forced: 0
        }
    );
}

/// Whoever comes back finds the device as it was.
#[test]
fn the_context_comes_back() {
    let mut f = fixture(models::RTL8139, InputPolicy::Drop);
    assert!(f.write(0, 0x20, 4, 0x1000));
    assert!(f.write(0, 0x44, 4, 0xf));
    let all_sent = |f: &Fixture| (0..4).for_each(|slot| f.card.set(0, 0x10 + 4 * slot, 0x2000));
    all_sent(&f);
    f.pass(10);
    assert!(f.write(1, 0x20, 4, 0x3000));
    assert_eq!(
        f.card.get(0, 0x44),
        None,
        "a guest that never had the card finds it reset"
    );
    all_sent(&f);
    assert!(!f.write(0, 0x10, 4, 60), "not before the quantum is over");
    f.pass(20);
    assert!(f.write(0, 0x3c, 2, 1));
    assert_eq!(f.card.get(0, 0x20), Some(0x1000_1000));
    assert_eq!(f.card.get(0, 0x44), Some(0xf));
}

/// To make a device ready for a guest can take longer than the guest then has it.
#[test]
fn the_time_that_a_switch_takes_is_nobodys() {
    let mut f = fixture(models::PIIX_BMIDE, InputPolicy::Switch);
    assert!(f.write(0, 4, 4, 0));
    f.pass(10);
    assert_eq!(f.arbiter.input(f.guests[1]), Input::Held);
    assert_eq!(f.arbiter.owner(), Some(f.guests[1]));
    f.arbiter.input(f.guests[0]);
    f.arbiter.tick(50);
    assert_eq!(f.arbiter.owner(), Some(f.guests[1]), "its turn begins now");
    f.arbiter.tick(52);
    assert_eq!(f.arbiter.owner(), Some(f.guests[0]));
}

/// The same for a device whose state the guest reads back.
#[test]
fn piix_shows_what_it_showed() {
    let mut f = fixture(models::PIIX_BMIDE, InputPolicy::Drop);
    // Channel 1: the list, the direction, and that there is DMA; interrupt and error are up.
    assert!(f.write(0, 12, 4, 0x3000) && f.write(0, 8, 1, 8));
    f.card.set(0, 10, 0x66);
    f.pass(10);
    assert!(f.write(1, 8, 1, 0));
    assert_eq!(
        f.card.get(0, 10),
        None,
        "the other guest finds a device that was reset"
    );
    f.pass(20);
    assert!(f.write(0, 0, 1, 0));
    assert_eq!(f.card.get(0, 8), Some(8));
    assert_eq!(f.card.get(0, 10), Some(0x60));
    let shown = |f: &Fixture| f.card.get(0, 12);
    assert!(
        shown(&f).is_some_and(|list| list >= 0x8000_0000),
        "the copy of the list"
    );
}

/// An access under way is not overtaken.
#[test]
fn no_switch_within_an_access() {
    let mut f = fixture(models::PIIX_BMIDE, InputPolicy::Drop);
    let [one, other] = f.guests;
    assert!(f.arbiter.enter(one));
    f.pass(1000);
    assert!(!f.arbiter.enter(other));
    f.pass(3000);
    assert_eq!(f.arbiter.owner(), Some(one));
    f.arbiter.leave(one);
    assert_eq!(f.arbiter.owner(), Some(other));
}

#[test]
fn who_waits_too_long_gets_the_device_by_force() {
    let mut f = fixture(models::RTL8139, InputPolicy::Drop);
    assert!(f.write(0, 0x20, 4, 0x1000) && f.write(0, 0x10, 4, 60));
    assert!(!f.write(1, 0x20, 4, 0x3000));
    f.pass(99);
    assert_eq!(f.arbiter.owner(), Some(f.guests[0]));
    f.pass(100);
    assert_eq!(f.arbiter.owner(), Some(f.guests[1]));
    assert_eq!(f.card.get(0, 0x10), None, "the card was reset");
    assert_eq!(
        f.arbiter.counts(),
        Counts {
            switches: 0,
            forced: 1
        }
    );
}

#[test]
fn interrupts_are_the_owners() {
    let mut f = fixture(models::RTL8139, InputPolicy::Drop);
    assert_eq!(f.arbiter.interrupt(), None);
    assert!(f.write(1, 0x3c, 2, 1));
    assert_eq!(f.arbiter.interrupt(), Some(f.guests[1]));
}

#[test]
fn input_goes_by_the_policy() {
    for policy in [InputPolicy::Hold, InputPolicy::Drop, InputPolicy::Switch] {
        let mut f = fixture(models::PIIX_BMIDE, policy);
        let [one, other] = f.guests;
        assert!(f.write(0, 4, 4, 0));
        assert_eq!(f.arbiter.input(one), Input::Deliver);
        f.pass(10);
        let expected = if policy == InputPolicy::Drop {
            Input::Dropped
        } else {
            Input::Held
        };
        assert_eq!(f.arbiter.input(other), expected);
        let owner = if policy == InputPolicy::Switch {
            other
        } else {
            one
        };
        assert_eq!(f.arbiter.owner(), Some(owner));
        assert_eq!(
            f.arbiter.take_held(other),
            u64::from(policy != InputPolicy::Drop)
        );
    }
}

/// A guest that dies leaves a device that moves nothing.
#[test]
fn a_dead_guest_is_dropped() {
    let mut f = fixture(models::RTL8139, InputPolicy::Drop);
    assert!(f.write(0, 0x20, 4, 0x1000) && f.write(0, 0x10, 4, 60));
    assert!(!f.write(1, 0x20, 4, 0x3000));
    f.arbiter.remove(f.guests[0]);
    assert_eq!(f.card.get(0, 0x10), None);
    assert_eq!(f.arbiter.owner(), Some(f.guests[1]));
    assert!(!f.write(0, 0x20, 4, 0x1000));
}
