//! The suppression of notifications, all interleavings.
//!
//! THREATS: notification lost or spurious (CVE-2020-16843). An explicit-state model of the two sides: the producer publishes and decides whether
//! to notify, the consumer consumes, says that it sleeps, looks again and sleeps. Stores go through a buffer, as on x86, and reach memory when
//! the model likes or at a fence. Producer and consumer are driver and device for kicks, device and driver for interrupts: the steps are the
//! same (`publish`, `needs_*`, `disable_*`, `enable_*` in both directories), with the event index, in a split and in a packed ring, or with
//! the flag. What decides is the crate's own code; the order of loads, stores and fences is the model's, and has to be kept the same. Every state is visited; none may be one in which the consumer sleeps beside what was produced, with no notification on its way.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

use std::collections::HashSet;

#[path = "../src/event.rs"]
mod event;

/// How a consumer says whether it wants to be notified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Flag,
    /// The split ring's event index, of 16 bits.
    Index,
    /// The packed ring's slot and wrap counter, in a ring of this size.
    Slot(u32),
}

/// What is left out, to see that the model would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Omit {
    Nothing,
    ProducerFence,
    ConsumerFence,
    LookAgain,
}

const OFF: u32 = u32::MAX;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Side {
    pc: u8,
    /// Stores on their way to memory, oldest first: to the own word.
    buffer: Vec<u32>,
    /// The position that was produced, or consumed.
    at: u32,
    /// Producer: positions published since it last asked. Consumer: the position that it last saw.
    seen: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    /// Written by the producer: how far it is.
    position: u32,
    /// Written by the consumer: [`OFF`], or the position at which it wants to be notified.
    wish: u32,
    notified: bool,
    producer: Side,
    consumer: Side,
    left: u8,
}

struct Model {
    wish: Wish,
    omit: Omit,
    modulus: u32,
}

const PUBLISH: u8 = 0;
const DECIDE: u8 = 1;

const CONSUME: u8 = 0;
const ARM: u8 = 1;
const LOOK: u8 = 2;
const ASLEEP: u8 = 3;

impl Model {
    fn new(wish: Wish, omit: Omit) -> Self {
        let modulus = match wish {
            Wish::Slot(size) => 2 * size,
            _ => 1 << 16,
        };
        Self {
            wish,
            omit,
            modulus,
        }
    }

    fn wants(&self, wish: u32, producer: &Side) -> bool {
        match self.wish {
            Wish::Flag => wish != OFF,
            Wish::Index => event::passed_index(wish as u16, producer.at as u16, producer.seen),
            Wish::Slot(_) => {
                wish != OFF && event::passed_slot(wish, producer.at, producer.seen, self.modulus)
            }
        }
    }

    /// A store reaches memory.
    fn flush(&self, state: &State) -> Vec<State> {
        let mut next = Vec::new();
        if !state.producer.buffer.is_empty() {
            let mut state = state.clone();
            state.position = state.producer.buffer.remove(0);
            next.push(state);
        }
        if !state.consumer.buffer.is_empty() {
            let mut state = state.clone();
            state.wish = state.consumer.buffer.remove(0);
            next.push(state);
        }
        next
    }

    fn produce(&self, state: &State) -> Vec<State> {
        let mut next = Vec::new();
        match state.producer.pc {
            PUBLISH => {
                // One or two with one publication.
                for count in 1..=state.left.min(2) {
                    let mut state = state.clone();
                    state.left -= count;
                    state.producer.at = (state.producer.at + u32::from(count)) % self.modulus;
                    state.producer.seen += u32::from(count);
                    let at = state.producer.at;
                    state.producer.buffer.push(at);
                    next.push(state.clone());
                    state.producer.pc = DECIDE;
                    next.push(state);
                }
            }
            DECIDE if self.omit == Omit::ProducerFence || state.producer.buffer.is_empty() => {
                let mut state = state.clone();
                if self.wants(state.wish, &state.producer) {
                    state.notified = true;
                }
                state.producer.seen = 0;
                state.producer.pc = PUBLISH;
                next.push(state);
            }
            _ => {}
        }
        next
    }

    fn consume(&self, state: &State) -> Vec<State> {
        let mut state = state.clone();
        match state.consumer.pc {
            CONSUME if state.position == state.consumer.at => state.consumer.pc = ARM,
            CONSUME => state.consumer.at = (state.consumer.at + 1) % self.modulus,
            ARM => {
                let at = state.consumer.at;
                state.consumer.buffer.push(at);
                state.consumer.pc = LOOK;
            }
            LOOK if self.omit != Omit::ConsumerFence && !state.consumer.buffer.is_empty() => {
                return Vec::new();
            }
            LOOK if state.position == state.consumer.at || self.omit == Omit::LookAgain => {
                state.consumer.pc = ASLEEP
            }
            ASLEEP if !state.notified => return Vec::new(),
            // There is more, or it was woken: it disables, and serves.
            LOOK | ASLEEP => {
                if state.consumer.pc == ASLEEP {
                    state.notified = false;
                }
                if self.wish != Wish::Index {
                    state.consumer.buffer.push(OFF);
                }
                state.consumer.pc = CONSUME;
            }
            _ => return Vec::new(),
        }
        vec![state]
    }

    /// Visits every state; returns how many there are, or one in which a notification is lost.
    fn run(&self, start: u32) -> Result<usize, State> {
        let side = |pc| Side {
            pc,
            buffer: Vec::new(),
            at: start,
            seen: 0,
        };
        let first = State {
            position: start,
            wish: start,
            notified: false,
            producer: side(PUBLISH),
            consumer: side(ASLEEP),
            left: 5,
        };
        let mut visited = HashSet::from([first.clone()]);
        let mut todo = vec![first];
        while let Some(state) = todo.pop() {
            let next = [
                self.flush(&state),
                self.produce(&state),
                self.consume(&state),
            ]
            .concat();
            // A producer that published and does not decide is not done; only one that has decided is.
            let lost = next.is_empty()
                && state.consumer.at != state.producer.at
                && state.producer.seen == 0;
            if lost {
                return Err(state);
            }
            todo.extend(
                next.into_iter()
                    .filter(|state| visited.insert(state.clone())),
            );
        }
        Ok(visited.len())
    }
}

fn wishes() -> impl Iterator<Item = (Wish, u32)> {
    // Starts at which the positions wrap meanwhile.
    let index = [0, 0xfffd, 0x7ffe].map(|start| (Wish::Index, start));
    let slots = [5, 8]
        .into_iter()
        .flat_map(|size| (0..2 * size).map(move |start| (Wish::Slot(size), start)));
    [(Wish::Flag, 0)].into_iter().chain(index).chain(slots)
}

#[test]
fn no_notification_is_lost() {
    for (wish, start) in wishes() {
        let states = Model::new(wish, Omit::Nothing).run(start);
        assert!(
            states.is_ok_and(|states| states > 100),
            "{wish:?} from {start}"
        );
    }
}

/// Each part of the protocol is needed, and the model would notice if it were missing.
#[test]
fn without_a_fence_or_the_second_look_one_is_lost() {
    for (wish, start) in wishes() {
        for omit in [Omit::ProducerFence, Omit::ConsumerFence, Omit::LookAgain] {
            assert!(
                Model::new(wish, omit).run(start).is_err(),
                "{wish:?} without {omit:?}"
            );
        }
    }
}
