//! Driver and device against each other, in every combination of ring features, against a model: what is added is popped, in order and
//! byte for byte; what is pushed is taken, with the length that was written; nothing is lost, made up or mixed up.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

use std::collections::VecDeque;
use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vring::{AddError, Buffer, Chain, DriverQueue, Features, Queue, QueueConfig, QueueState, View};

type Memory = Arc<GuestMemoryMmap<()>>;

const BUFFERS: u64 = 0x10000;
const TABLES: u64 = 0x40000;
/// Bytes of buffers, and of a table, for each chain.
const ROOM: u64 = 0x400;

#[derive(Clone, Debug)]
enum Step {
    Add {
        readable: Vec<u8>,
        writable: Vec<u8>,
        indirect: bool,
    },
    Pop,
    /// Push the chain in flight with this number, modulo what is there, with so much of it written.
    Push {
        which: usize,
        written: u32,
        stage: bool,
    },
    Take,
    Save,
    Unmap,
    Sleep,
}

fn step() -> impl Strategy<Value = Step> {
    let lens = || prop::collection::vec(0u8..40, 0..4);
    prop_oneof![
        5 => (lens(), lens(), any::<bool>())
            .prop_map(|(readable, writable, indirect)| Step::Add { readable, writable, indirect }),
        5 => Just(Step::Pop),
        5 => (any::<usize>(), 0u32..200, any::<bool>())
            .prop_map(|(which, written, stage)| Step::Push { which, written, stage }),
        5 => Just(Step::Take),
        1 => Just(Step::Save),
        1 => Just(Step::Unmap),
        1 => Just(Step::Sleep),
    ]
}

/// A chain as the model knows it.
#[derive(Clone, Debug)]
struct Model {
    token: u64,
    readable: Vec<u8>,
    writable: usize,
}

struct Both {
    memory: Memory,
    config: QueueConfig,
    driver: DriverQueue<Memory, u64>,
    device: Queue<Memory>,
    view: View<Memory>,
    added: VecDeque<Model>,
    in_flight: Vec<(Model, Chain<View<Memory>>)>,
    /// Pushed, as token and length, in the order in which they may be taken.
    pushed: VecDeque<(u64, u32)>,
    /// With IN_ORDER: popped and not yet taken, oldest first.
    order: VecDeque<u64>,
    staged: bool,
    next: u64,
    outstanding: usize,
}

impl Both {
    fn new(size: u32, features: Features) -> Self {
        let memory: Memory =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x80000)]).unwrap());
        let config = QueueConfig {
            size,
            desc: GuestAddress(0x1000),
            avail: GuestAddress(0x2000),
            used: GuestAddress(0x3000),
            features,
        };
        Self {
            driver: DriverQueue::new(memory.clone(), &config).unwrap(),
            device: Queue::new(memory.clone(), &config, None).unwrap(),
            view: View::new(&memory),
            memory,
            config,
            added: VecDeque::new(),
            in_flight: Vec::new(),
            pushed: VecDeque::new(),
            order: VecDeque::new(),
            staged: false,
            next: 0,
            outstanding: 0,
        }
    }

    fn add(&mut self, readable: &[u8], writable: &[u8], indirect: bool) {
        let token = self.next;
        let mut addr = BUFFERS + ROOM * (token % 64);
        let mut buffers = Vec::new();
        let mut bytes = Vec::new();
        for (lens, writable) in [(readable, false), (writable, true)] {
            for &len in lens {
                buffers.push(Buffer {
                    addr: GuestAddress(addr),
                    len: len.into(),
                    writable,
                });
                if !writable {
                    let content: Vec<u8> = (0..len)
                        .map(|i| (token as u8).wrapping_mul(31).wrapping_add(i))
                        .collect();
                    self.memory
                        .write_slice(&content, GuestAddress(addr))
                        .unwrap();
                    bytes.extend(content);
                }
                addr += u64::from(len);
            }
        }
        let indirect = indirect && self.config.features.contains(Features::INDIRECT_DESC);
        let result = if indirect {
            let table = GuestAddress(TABLES + ROOM * (token % 64));
            self.driver.add_indirect(table, &buffers, token)
        } else {
            self.driver.add(&buffers, token)
        };
        match result {
            Ok(()) => {
                let writable = writable.iter().map(|len| usize::from(*len)).sum();
                self.added.push_back(Model {
                    token,
                    readable: bytes,
                    writable,
                });
                self.next += 1;
                self.outstanding += 1;
            }
            Err(AddError::Empty) => assert!(buffers.is_empty()),
            Err(AddError::TooLong(count)) => assert!(count > self.config.size as usize),
            Err(AddError::Full { wanted, free }) => assert!(wanted > free && self.outstanding > 0),
            Err(error) => panic!("{error}"),
        }
    }

    fn pop(&mut self) {
        let chain = self.device.pop(&self.view).unwrap();
        let Some(model) = self.added.pop_front() else {
            assert!(chain.is_none());
            return;
        };
        let chain = chain.unwrap();
        self.order.push_back(model.token);
        Self::check(&chain, &model);
        self.in_flight.push((model, chain));
    }

    fn check(chain: &Chain<View<Memory>>, model: &Model) {
        assert_eq!(chain.readable_len(), model.readable.len() as u64);
        assert_eq!(chain.writable_len(), model.writable as u64);
        let mut bytes = vec![0; model.readable.len()];
        chain.reader().read_exact(&mut bytes).unwrap();
        assert_eq!(bytes, model.readable);
    }

    fn push(&mut self, which: usize, written: u32, stage: bool) {
        if self.in_flight.is_empty() {
            return;
        }
        let (model, chain) = self.in_flight.remove(which % self.in_flight.len());
        let written = written.min(model.writable as u32);
        let content = vec![model.token as u8; written as usize];
        let mut writer = chain.writer();
        writer.write_all(&content).unwrap();
        assert_eq!(writer.written(), written);
        if stage {
            self.device.stage(chain, written).unwrap();
            self.staged = true;
        } else {
            self.device.push(chain, written).unwrap();
            self.staged = false;
        }
        self.pushed.push_back((model.token, written));
    }

    fn publish(&mut self) {
        self.device.publish().unwrap();
        self.staged = false;
    }

    /// The next chain that the driver may see, of those pushed.
    fn expected(&mut self) -> Option<(u64, u32)> {
        if !self.config.features.contains(Features::IN_ORDER) {
            return self.pushed.pop_front();
        }
        let first = *self.order.front()?;
        let index = self.pushed.iter().position(|(token, _)| *token == first)?;
        self.order.pop_front();
        self.pushed.remove(index)
    }

    fn take(&mut self) {
        if self.staged {
            self.publish();
        }
        let expected = self.expected();
        let used = self.driver.take().unwrap();
        assert_eq!(
            used.as_ref().map(|used| (used.token, used.written)),
            expected
        );
        self.outstanding -= usize::from(used.is_some());
    }

    /// Stops the device and starts it from what it saved. Chains in flight are popped again, oldest first.
    fn save(&mut self) {
        self.publish();
        // Chains that were pushed out of order under IN_ORDER are not in the ring: they will be popped again.
        let state = self.device.save();
        let json = serde_json::to_string(&state).unwrap();
        let state: QueueState = serde_json::from_str(&json).unwrap();
        self.device = Queue::new(self.memory.clone(), &self.config, Some(&state)).unwrap();
        assert_eq!(self.device.save(), state);
        let mut again: Vec<Model> = self.in_flight.drain(..).map(|(model, _)| model).collect();
        again.sort_by_key(|model| model.token);
        for model in again {
            let chain = self.device.pop(&self.view).unwrap().unwrap();
            Self::check(&chain, &model);
            self.in_flight.push((model, chain));
        }
    }

    fn run(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Add {
                    readable,
                    writable,
                    indirect,
                } => self.add(&readable, &writable, indirect),
                Step::Pop => self.pop(),
                Step::Push {
                    which,
                    written,
                    stage,
                } => self.push(which, written, stage),
                Step::Take => self.take(),
                Step::Save => {
                    if !self.config.features.contains(Features::IN_ORDER) {
                        self.save();
                    }
                }
                Step::Unmap => self.device.unmap(),
                Step::Sleep => {
                    self.device.disable_kicks().unwrap();
                    assert_eq!(self.device.has_new().unwrap(), !self.added.is_empty());
                    assert_eq!(self.device.enable_kicks().unwrap(), !self.added.is_empty());
                    if !self.staged {
                        self.driver.disable_interrupts();
                        let in_order = self.config.features.contains(Features::IN_ORDER);
                        let pending = if in_order {
                            self.order.front().is_some_and(|first| {
                                self.pushed.iter().any(|(token, _)| token == first)
                            })
                        } else {
                            !self.pushed.is_empty()
                        };
                        assert_eq!(self.driver.enable_interrupts(), pending);
                    }
                }
            }
        }
        // Everything comes back.
        while !self.added.is_empty() {
            self.pop();
        }
        while !self.in_flight.is_empty() {
            self.push(0, 0, false);
        }
        while self.outstanding > 0 {
            self.take();
        }
        assert!(self.driver.take().unwrap().is_none());
        assert!(self.device.pop(&self.view).unwrap().is_none());
    }
}

fn features() -> impl Strategy<Value = Features> {
    prop::array::uniform4(any::<bool>()).prop_map(|[packed, event_idx, indirect, in_order]| {
        let mut features = Features::VERSION_1;
        features.set(Features::RING_PACKED, packed);
        features.set(Features::EVENT_IDX, event_idx);
        features.set(Features::INDIRECT_DESC, indirect);
        features.set(Features::IN_ORDER, in_order);
        features
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_lost_made_up_or_mixed_up(
        features in features(),
        size in 1u32..=16,
        steps in prop::collection::vec(step(), 0..200),
    ) {
        let size = if features.contains(Features::RING_PACKED) { size } else { size.next_power_of_two() };
        Both::new(size, features).run(steps);
    }
}

/// A notification is asked for whenever the other side said that it sleeps, and never when it said that it does not want one.
#[test]
fn a_sleeper_is_woken_by_the_first_chain_and_only_by_it() {
    for packed in [false, true] {
        for event_idx in [false, true] {
            let mut features = Features::VERSION_1;
            features.set(Features::RING_PACKED, packed);
            features.set(Features::EVENT_IDX, event_idx);
            let mut both = Both::new(4, features);
            // Two chains a turn: far enough for the split ring's indices to wrap.
            for _ in 0..if packed { 100 } else { 33_000 } {
                assert!(!both.device.enable_kicks().unwrap());
                both.add(&[1], &[1], false);
                assert!(both.driver.needs_kick());
                assert!(!both.driver.needs_kick());
                both.device.disable_kicks().unwrap();
                both.pop();
                both.add(&[1], &[1], false);
                assert!(!both.driver.needs_kick());
                both.pop();

                assert!(!both.driver.enable_interrupts());
                both.push(0, 1, false);
                assert!(both.device.needs_interrupt().unwrap());
                assert!(!both.device.needs_interrupt().unwrap());
                both.driver.disable_interrupts();
                both.take();
                both.push(0, 1, false);
                assert!(!both.device.needs_interrupt().unwrap());
                both.take();
            }
        }
    }
}
