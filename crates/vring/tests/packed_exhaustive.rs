//! Every small packed ring, against a model written from the text of the specification.
//!
//! THREATS: packed ring: wrap counter on a chain that fills the ring; size not a power of two; INDIRECT with NEXT (openvmm #2983 #3990).
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vring::{Error, Features, PackedPosition, PackedState, Queue, QueueConfig, QueueState, Rule};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
const AVAIL: u16 = 1 << 7;
const USED: u16 = 1 << 15;
const RING: u64 = 0x1000;
const TABLE: u64 = 0x4000;
const BUFFER: u64 = 0x5000;

#[derive(Clone, Copy, Debug)]
struct Desc {
    len: u32,
    id: u16,
    flags: u16,
}

/// What is popped: ID, slots, readable and writable bytes.
type Popped = (u16, usize, u64, u64);

/// The chain at `at`; flags of availability are right for `available` slots from there.
fn model(
    ring: &[Desc],
    table: &[Desc],
    at: PackedPosition,
    available: usize,
) -> Result<Option<Popped>, Error> {
    if available == 0 {
        return Ok(None);
    }
    let (mut slots, mut buffers, mut readable, mut writable, mut seen) = (0, 0, 0, 0, false);
    let mut rule = None;
    let mut add = |desc: &Desc| {
        buffers += 1;
        if buffers > ring.len() {
            return Some(Rule::TooLong);
        }
        if desc.flags & WRITE != 0 {
            seen = true;
            writable += u64::from(desc.len);
        } else if seen {
            return Some(Rule::Order);
        } else {
            readable += u64::from(desc.len);
        }
        None
    };
    let mut chain = Vec::new();
    // First the descriptors up to the one without NEXT, whatever they mean.
    let head = loop {
        let desc = ring[(usize::from(at.slot) + slots) % ring.len()];
        let fail = |rule| {
            Err(Error::Chain {
                head: desc.id,
                rule,
            })
        };
        if slots == ring.len() {
            return fail(Rule::TooLong);
        }
        slots += 1;
        chain.push(desc);
        if desc.flags & NEXT == 0 {
            if usize::from(desc.id) >= ring.len() {
                return fail(Rule::Head);
            }
            break desc.id;
        }
        if desc.flags & INDIRECT != 0 {
            return fail(Rule::IndirectNext);
        }
    };
    for desc in &chain {
        if desc.flags & INDIRECT == 0 {
            rule = rule.or_else(|| add(desc));
        } else if desc.len == 0 || !desc.len.is_multiple_of(16) {
            rule = rule.or(Some(Rule::IndirectLength(desc.len)));
        } else {
            for entry in &table[..desc.len as usize / 16] {
                rule = rule.or_else(|| {
                    if entry.flags & INDIRECT != 0 {
                        Some(Rule::IndirectNested)
                    } else {
                        add(entry)
                    }
                });
            }
        }
    }
    match rule {
        Some(rule) => Err(Error::Chain { head, rule }),
        None => Ok(Some((head, slots, readable, writable))),
    }
}

fn sequences<T: Copy>(items: &[T], n: usize) -> Vec<Vec<T>> {
    (0..n).fold(vec![Vec::new()], |sequences, _| {
        sequences
            .iter()
            .flat_map(|sequence| {
                items
                    .iter()
                    .map(|item| [sequence.as_slice(), &[*item]].concat())
            })
            .collect()
    })
}

struct Ring {
    memory: Arc<GuestMemoryMmap<()>>,
    config: QueueConfig,
}

impl Ring {
    fn new(size: usize) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let config = QueueConfig {
            size: size.try_into().unwrap(),
            desc: GuestAddress(RING),
            avail: GuestAddress(0x2000),
            used: GuestAddress(0x3000),
            features: Features::VERSION_1 | Features::RING_PACKED | Features::INDIRECT_DESC,
        };
        Self {
            memory: Arc::new(memory),
            config,
        }
    }

    fn write(&self, table: u64, index: usize, desc: Desc) {
        let addr = if desc.flags & INDIRECT != 0 {
            TABLE
        } else {
            BUFFER
        };
        let at = GuestAddress(table + 16 * index as u64);
        self.memory.write_obj(addr, at).unwrap();
        let word = u64::from(desc.len) | u64::from(desc.id) << 32 | u64::from(desc.flags) << 48;
        self.memory.write_obj(word, GuestAddress(at.0 + 8)).unwrap();
    }

    fn flags(&self, slot: usize) -> u16 {
        self.memory
            .read_obj(GuestAddress(RING + 16 * slot as u64 + 14))
            .unwrap()
    }

    fn check(&self, descs: &[Desc], table: &[Desc], at: PackedPosition, available: usize) {
        let size = descs.len();
        for i in 0..size {
            let slot = (usize::from(at.slot) + i) % size;
            let wrap = at.wrap ^ (usize::from(at.slot) + i >= size);
            // What is not available was used in the lap before.
            let mark = if i < available {
                [USED, AVAIL]
            } else {
                [AVAIL | USED, 0]
            }[usize::from(wrap)];
            let desc = descs[slot];
            self.write(
                RING,
                slot,
                Desc {
                    flags: desc.flags | mark,
                    ..desc
                },
            );
        }
        let state = QueueState::Packed(PackedState {
            next_avail: at,
            next_used: at,
            in_flight: Vec::new(),
        });
        let mut queue = Queue::new(self.memory.clone(), &self.config, Some(&state)).unwrap();
        let popped = queue.pop(&&*self.memory);
        let expected = model(descs, table, at, available);
        match expected {
            Ok(None) => assert!(popped.unwrap().is_none()),
            Ok(Some((head, slots, readable, writable))) => {
                let chain = popped.unwrap().unwrap();
                assert_eq!(
                    (chain.head(), chain.readable_len(), chain.writable_len()),
                    (head, readable, writable)
                );
                queue.push(chain, 0).unwrap();
                assert_eq!(
                    self.flags(usize::from(at.slot)),
                    if at.wrap { AVAIL | USED } else { 0 }
                );
                let to = usize::from(at.slot) + slots;
                let to = PackedPosition {
                    slot: (to % size).try_into().unwrap(),
                    wrap: at.wrap ^ (to >= size),
                };
                let state = PackedState {
                    next_avail: to,
                    next_used: to,
                    in_flight: Vec::new(),
                };
                assert_eq!(queue.save(), QueueState::Packed(state));
            }
            Err(error) => {
                assert_eq!(popped.err(), Some(error), "{descs:x?} {at:?} {available}");
                assert_eq!(queue.pop(&&*self.memory).err(), Some(Error::Broken));
            }
        }
    }
}

fn positions(size: usize) -> impl Iterator<Item = PackedPosition> {
    (0..size).flat_map(|slot| {
        [true, false].map(|wrap| PackedPosition {
            slot: slot.try_into().unwrap(),
            wrap,
        })
    })
}

#[test]
fn direct_chains_at_every_position() {
    for size in [1usize, 2, 3, 5] {
        let ring = Ring::new(size);
        let ids: &[u16] = if size > 3 { &[0] } else { &[0, 1, 3] };
        let mut descs = Vec::new();
        for &id in ids {
            descs.extend([0, NEXT, WRITE, NEXT | WRITE].map(|flags| Desc { len: 8, id, flags }));
        }
        for descs in sequences(&descs, size) {
            for at in positions(size) {
                for available in if size > 3 {
                    vec![0, size]
                } else {
                    (0..=size).collect()
                } {
                    ring.check(&descs, &[], at, available);
                }
            }
        }
    }
}

#[test]
fn indirect_tables() {
    let ring = Ring::new(3);
    let entries: Vec<Desc> = (0..8)
        .map(|flags| Desc {
            len: 8,
            id: 9,
            flags,
        })
        .collect();
    let mut descs: Vec<Desc> = (0..4)
        .map(|flags| Desc {
            len: 8,
            id: 1,
            flags,
        })
        .collect();
    for len in [0, 8, 16, 32] {
        descs.push(Desc {
            len,
            id: 1,
            flags: INDIRECT,
        });
        descs.push(Desc {
            len,
            id: 1,
            flags: INDIRECT | NEXT,
        });
    }
    for table in sequences(&entries, 2) {
        for (index, entry) in table.iter().enumerate() {
            ring.write(TABLE, index, *entry);
        }
        for descs in sequences(&descs, 3) {
            ring.check(
                &descs,
                &table,
                PackedPosition {
                    slot: 2,
                    wrap: true,
                },
                3,
            );
        }
    }
}

/// A driver that makes slots available which are in flight.
#[test]
fn more_descriptors_than_the_ring_has() {
    let ring = Ring::new(2);
    let mut queue = Queue::new(ring.memory.clone(), &ring.config, None).unwrap();
    let mut in_flight = Vec::new();
    for lap in [AVAIL, USED] {
        for slot in 0..2u16 {
            ring.write(
                RING,
                slot.into(),
                Desc {
                    len: 1,
                    id: slot,
                    flags: lap,
                },
            );
        }
        if lap == AVAIL {
            in_flight.extend([(); 2].map(|()| queue.pop(&&*ring.memory).unwrap().unwrap()));
        }
    }
    assert_eq!(
        queue.pop(&&*ring.memory).err(),
        Some(Error::Chain {
            head: 0,
            rule: Rule::TooLong
        })
    );
}

/// THREATS: one head offered twice while in flight (openvmm #4002), here a buffer ID.
#[test]
fn one_id_offered_twice() {
    let ring = Ring::new(3);
    for slot in 0..2 {
        ring.write(
            RING,
            slot,
            Desc {
                len: 1,
                id: 2,
                flags: AVAIL,
            },
        );
    }
    let mut queue = Queue::new(ring.memory.clone(), &ring.config, None).unwrap();
    let _in_flight = queue.pop(&&*ring.memory).unwrap().unwrap();
    assert_eq!(
        queue.pop(&&*ring.memory).err(),
        Some(Error::Chain {
            head: 2,
            rule: Rule::InFlight
        })
    );
}

/// What is kept of the chains in flight is what the driver wrote, whichever lengths they have and in whichever order they were pushed before.
#[test]
fn chains_in_flight_are_kept_as_they_were() {
    const SIZE: usize = 5;
    let shapes: [&[usize]; 5] = [&[2, 1, 2], &[1, 1, 3], &[5], &[1, 4], &[1; 5]];
    for laps in sequences(&[0, 1, 2, 3, 4], 2) {
        for turn in 0..SIZE {
            let ring = Ring::new(SIZE);
            let mut queue = Queue::new(ring.memory.clone(), &ring.config, None).unwrap();
            for (lap, &shape) in laps.iter().enumerate() {
                let mark = [AVAIL, USED][lap % 2];
                let (mut slot, mut expected, mut chains) = (0, Vec::new(), Vec::new());
                for (id, &slots) in (0..).zip(shapes[shape]) {
                    let descs = (1..=slots).map(|i| {
                        let flags = if i < slots { NEXT } else { WRITE };
                        let len = (100 * lap + slot + i) as u32;
                        Desc { len, id, flags }
                    });
                    let descs: Vec<Desc> = descs.collect();
                    for desc in &descs {
                        let flags = desc.flags | mark;
                        ring.write(RING, slot, Desc { flags, ..*desc });
                        slot += 1;
                    }
                    let kept = descs.iter().map(|d| (BUFFER, d.len, d.flags & WRITE));
                    expected.push((id, kept.collect::<Vec<_>>()));
                    chains.push(queue.pop(&&*ring.memory).unwrap().unwrap());
                }
                assert!(queue.pop(&&*ring.memory).unwrap().is_none());
                while !chains.is_empty() {
                    let QueueState::Packed(state) = queue.save() else {
                        panic!("state of a packed queue");
                    };
                    let kept = state.in_flight.into_iter();
                    let kept: Vec<_> = kept.map(|chain| (chain.id, chain.descriptors)).collect();
                    assert_eq!(kept, expected, "{laps:?} {turn} {lap}");
                    let next = turn % chains.len();
                    expected.remove(next);
                    queue.push(chains.remove(next), 0).unwrap();
                }
            }
        }
    }
}
