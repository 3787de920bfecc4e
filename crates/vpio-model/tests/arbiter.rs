//! One card, several guests.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test")]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::{SIZE, parse};
use vpio_model::arbiter::{Arbiter, Counts, GuestId, Handover, Input, InputPolicy, Sharing, Why};
use vpio_model::engine::{At, Engine, Physical, Translation};
use vpio_model::in_process::{Memory, Registers};
use vpio_model::models;

struct Fixture<P> {
    arbiter: Arbiter<Arc<Memory>, Arc<P>>,
    card: Arc<P>,
    guests: [GuestId; 2],
    /// The turns that they had.
    turns: [Arc<Mutex<Vec<Handover>>>; 2],
}

fn fixture<P: Physical + Default>(text: &str, input: InputPolicy) -> Fixture<P> {
    let card = Arc::new(P::default());
    let sharing = Sharing {
        quantum: 2,
        patience: 100,
        input,
    };
    let mut arbiter = Arbiter::new(card.clone(), sharing);
    let model = Arc::new(parse(text));
    let turns = [(), ()].map(|()| Arc::<Mutex<Vec<Handover>>>::default());
    let guests = [0, 1].map(|i: usize| {
        let translation = Translation::Offset {
            base: 0x1000_0000 * (1 + i as u64),
            size: SIZE,
        };
        let shadow = usize::try_from(model.shadow_bytes()).unwrap();
        let memory = Memory::new(1 << 20, translation, shadow, 0x8000_0000);
        let mine = turns[i].clone();
        let wake = move |turn: &Handover| mine.lock().unwrap().push(*turn);
        arbiter.add(Engine::new(model.clone(), Arc::new(memory)), Box::new(wake))
    });
    Fixture {
        arbiter,
        card,
        guests,
        turns,
    }
}

impl<P: Physical> Fixture<P> {
    /// The guest's last turn.
    fn turn(&self, guest: usize) -> Handover {
        *self.turns[guest].lock().unwrap().last().unwrap()
    }

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
    let mut f: Fixture<Registers> = fixture(models::RTL8139, InputPolicy::Drop);
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
    let turn = Handover {
        guest: f.guests[1],
        why: Why::Reusable,
        waited: 0,
        asked: true,
        replayed: false,
    };
    assert_eq!(*f.turns[1].lock().unwrap(), [turn]);
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
    let mut f: Fixture<Registers> = fixture(models::RTL8139, InputPolicy::Drop);
    assert!(f.write(0, 0x20, 4, 0x1000));
    assert!(f.write(0, 0x44, 4, 0xf));
    let all_sent =
        |f: &Fixture<Registers>| (0..4).for_each(|slot| f.card.set(0, 0x10 + 4 * slot, 0x2000));
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
    assert!(f.turn(0).replayed);
}

/// To make a device ready for a guest can take longer than the guest then has it.
#[test]
fn the_time_that_a_switch_takes_is_nobodys() {
    let mut f: Fixture<Registers> = fixture(models::PIIX_BMIDE, InputPolicy::Switch);
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
    let mut f: Fixture<Registers> = fixture(models::PIIX_BMIDE, InputPolicy::Drop);
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
    let shown = |f: &Fixture<Registers>| f.card.get(0, 12);
    assert!(
        shown(&f).is_some_and(|list| list >= 0x8000_0000),
        "the copy of the list"
    );
}

/// An access under way is not overtaken.
#[test]
fn no_switch_within_an_access() {
    let mut f: Fixture<Registers> = fixture(models::PIIX_BMIDE, InputPolicy::Drop);
    let [one, other] = f.guests;
    assert!(f.arbiter.enter(one));
    f.pass(1000);
    assert!(!f.arbiter.enter(other));
    f.pass(3000);
    assert_eq!(f.arbiter.owner(), Some(one));
    f.arbiter.leave(one);
    assert_eq!(f.arbiter.owner(), Some(other));
}

/// An RTL8139 as far as it sends, one slot after the other.
#[derive(Default)]
struct Slots {
    registers: Registers,
    next: AtomicU64,
}

impl Physical for Slots {
    fn read(&self, space: u8, offset: u64, width: u8) -> u64 {
        self.registers.read(space, offset, width)
    }

    fn write(&self, space: u8, offset: u64, width: u8, value: u64) {
        self.registers.write(space, offset, width, value);
        loop {
            let status = 0x10 + 4 * self.next.load(Ordering::Relaxed);
            if self.registers.get(0, status).unwrap_or(0) & 0x2000 != 0 {
                return;
            }
            self.registers.set(0, status, 0xa000);
            self.next
                .store(((status - 0x10) / 4 + 1) % 4, Ordering::Relaxed);
        }
    }

    fn reset(&self) {
        self.registers.reset();
        (0..4).for_each(|slot| self.registers.set(0, 0x10 + 4 * slot, 0x2000));
        self.next.store(0, Ordering::Relaxed);
    }
}

/// A driver goes on at the slot after its last one, and finds what it sent sent.
#[test]
fn a_card_that_takes_slots_in_turn_comes_back_at_the_right_one() {
    let mut f: Fixture<Slots> = fixture(models::RTL8139, InputPolicy::Drop);
    let send = |f: &mut Fixture<Slots>, slot| {
        assert!(f.write(0, 0x20 + 4 * slot, 4, 0x1000) && f.write(0, 0x10 + 4 * slot, 4, 60));
        assert_eq!(
            f.card.registers.get(0, 0x10 + 4 * slot),
            Some(0xa000),
            "slot {slot}"
        );
    };
    assert!(f.write(0, 0x37, 1, 4));
    for sent in 0..6 {
        send(&mut f, sent % 4);
        f.pass(20 * sent + 10);
        assert!(f.write(1, 0x44, 4, 0xf));
        f.pass(20 * sent + 20);
        assert!(f.write(0, 0x44, 4, 0xf));
        assert_eq!(f.card.registers.get(0, 0x10 + 4 * (sent % 4)), Some(0xa000));
        assert_eq!(
            f.card.registers.get(0, 0x3e),
            Some(0xfffa),
            "the driver looks at its slots"
        );
    }
    assert_eq!(f.arbiter.counts().forced, 0);
}

/// An RTL8139's EEPROM is read bit by bit: what was asked is in the card only.
#[test]
fn a_driver_that_reads_the_eeprom_keeps_the_card() {
    let mut f: Fixture<Slots> = fixture(models::RTL8139, InputPolicy::Drop);
    f.card.reset();
    // Selected, and a bit of the question.
    assert!(f.write(0, 0x50, 1, 0x88) && f.write(0, 0x50, 1, 0x8e));
    f.pass(10);
    assert!(!f.write(1, 0x44, 4, 0xf));
    assert!(f.write(0, 0x50, 1, 0x88));
    assert_eq!(f.arbiter.owner(), Some(f.guests[0]));
    assert!(f.write(0, 0x50, 1, 0), "the EEPROM has answered");
    assert_eq!(f.arbiter.owner(), Some(f.guests[1]));
    assert_eq!(f.arbiter.counts().forced, 0);
}

/// What is in an NE2000's memory and is to be sent would be lost, and so would be the interrupt that a driver has masked meanwhile.
#[test]
fn a_driver_that_sends_keeps_the_card() {
    let mut f: Fixture<Registers> = fixture(models::NE2000, InputPolicy::Drop);
    let (one, other) = (f.guests[0], f.guests[1]);
    // Started without a ring, in monitor mode; a packet is written.
    for (register, value) in [(0xc, 0x20), (0, 0x22), (0xf, 0), (0, 0x12), (0, 0x22)] {
        assert!(f.write(0, register, 1, value));
    }
    assert!(!f.write(1, 0, 1, 0x21));
    f.pass(10);
    assert_eq!(f.arbiter.owner(), Some(one), "it is not sent");
    assert!(f.write(0, 0, 1, 0x26));
    f.pass(20);
    assert_eq!(f.arbiter.owner(), Some(one), "it is being sent");
    f.card.set(0, 0, 0x22);
    f.card.set(0, 7, 2);
    f.pass(30);
    assert_eq!(
        f.arbiter.owner(),
        Some(one),
        "nobody asked whether it is sent"
    );
    f.card.set(0, 7, 0);
    f.pass(40);
    assert_eq!(f.arbiter.owner(), Some(other));
    assert_eq!(f.arbiter.counts().forced, 0);
}

#[test]
fn who_waits_too_long_gets_the_device_by_force() {
    let mut f: Fixture<Registers> = fixture(models::RTL8139, InputPolicy::Drop);
    assert!(f.write(0, 0x20, 4, 0x1000) && f.write(0, 0x10, 4, 60));
    assert!(!f.write(1, 0x20, 4, 0x3000));
    f.pass(99);
    assert_eq!(f.arbiter.owner(), Some(f.guests[0]));
    f.pass(100);
    assert_eq!(f.arbiter.owner(), Some(f.guests[1]));
    assert_eq!(f.card.get(0, 0x10), None, "the card was reset");
    let turn = f.turn(1);
    assert_eq!((turn.why, turn.waited), (Why::Forced, 100));
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
    let mut f: Fixture<Registers> = fixture(models::RTL8139, InputPolicy::Drop);
    assert_eq!(f.arbiter.interrupt(), None);
    assert!(f.write(1, 0x3c, 2, 1));
    assert_eq!(f.arbiter.interrupt(), Some(f.guests[1]));
}

#[test]
fn input_goes_by_the_policy() {
    for policy in [InputPolicy::Hold, InputPolicy::Drop, InputPolicy::Switch] {
        let mut f: Fixture<Registers> = fixture(models::PIIX_BMIDE, policy);
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
        if owner == other {
            assert!(!f.turn(1).asked, "there is only input for it");
        }
        assert_eq!(
            f.arbiter.take_held(other),
            u64::from(policy != InputPolicy::Drop)
        );
    }
}

/// A guest that dies leaves a device that moves nothing.
#[test]
fn a_dead_guest_is_dropped() {
    let mut f: Fixture<Registers> = fixture(models::RTL8139, InputPolicy::Drop);
    assert!(f.write(0, 0x20, 4, 0x1000) && f.write(0, 0x10, 4, 60));
    assert!(!f.write(1, 0x20, 4, 0x3000));
    f.arbiter.remove(f.guests[0]);
    assert_eq!(f.card.get(0, 0x10), None);
    assert_eq!(f.arbiter.owner(), Some(f.guests[1]));
    assert!(!f.write(0, 0x20, 4, 0x1000));
}
