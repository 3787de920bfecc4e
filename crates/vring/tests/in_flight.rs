//! The region that tracks what is in flight for a successor (vhost-user, "Inflight I/O tracking"): a device that may be killed at
//! any time, and one that takes its place, complete each chain exactly once.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion, VolatileMemory};
use vring::{
    Buffer, Chain, DriverQueue, Features, InFlightRegion, Queue, QueueConfig, StartError,
    StateError, View,
};

type Memory = Arc<GuestMemoryMmap<()>>;

/// Where the process dies.
#[derive(Clone, Copy, Debug)]
enum Death {
    /// Between two operations.
    Between,
    /// In a pop, before the last word of the region is written.
    InPop,
    /// In a push, before the driver can see it.
    BeforeRing,
    /// In a push, when the driver can see it and the region does not say so.
    AfterRing,
    /// In a push, when the region says that the chain is not in flight, and not yet that it is done with.
    Late,
}

#[derive(Clone, Debug)]
enum Step {
    Add(u16),
    Pop,
    Push(usize),
    Take,
    Die(Death, usize),
}

fn step() -> impl Strategy<Value = Step> {
    let death = prop_oneof![
        Just(Death::Between),
        Just(Death::InPop),
        Just(Death::BeforeRing),
        Just(Death::AfterRing),
        Just(Death::Late),
    ];
    prop_oneof![
        4 => (1u16..4).prop_map(Step::Add),
        4 => Just(Step::Pop),
        4 => any::<usize>().prop_map(Step::Push),
        3 => Just(Step::Take),
        2 => (death, any::<usize>()).prop_map(|(death, which)| Step::Die(death, which)),
    ]
}

struct Rig {
    memory: Memory,
    config: QueueConfig,
    area: Arc<MmapRegion>,
    driver: DriverQueue<Memory, u32>,
    added: u32,
    taken: BTreeSet<u32>,
    device: Queue<Memory>,
    in_flight: Vec<Chain<View<Memory>>>,
}

impl Rig {
    fn new(packed: bool, in_order: bool, size: u32) -> Self {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x8000)]).unwrap());
        let mut features = Features::VERSION_1;
        features.set(Features::RING_PACKED, packed);
        features.set(Features::IN_ORDER, in_order);
        let config = QueueConfig {
            size,
            desc: GuestAddress(0),
            avail: GuestAddress(0x1000),
            used: GuestAddress(0x2000),
            features,
        };
        let driver = DriverQueue::new(memory.clone(), &config).unwrap();
        let area = MmapRegion::new(InFlightRegion::len(features, size as u16)).unwrap();
        let area = Arc::new(area);
        let device = Self::successor(&memory, &config, &area).unwrap();
        Self {
            memory,
            config,
            area,
            driver,
            added: 0,
            taken: BTreeSet::new(),
            device,
            in_flight: Vec::new(),
        }
    }

    fn successor(
        memory: &Memory,
        config: &QueueConfig,
        area: &Arc<MmapRegion>,
    ) -> Result<Queue<Memory>, StartError> {
        let region =
            InFlightRegion::new(area.clone(), 0, config.features, config.size as u16).unwrap();
        Queue::tracked(memory.clone(), config, None, region)
    }

    fn region(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.area.size()];
        self.area.as_volatile_slice().copy_to(&mut bytes);
        bytes
    }

    fn set_region(&self, bytes: &[u8]) {
        self.area.as_volatile_slice().copy_from(bytes);
    }

    fn rings(&self) -> Vec<u8> {
        let mut bytes = vec![0; 0x3000];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    fn pop(&mut self) -> bool {
        let popped = self.device.pop(&View::new(&self.memory)).unwrap();
        let some = popped.is_some();
        self.in_flight.extend(popped);
        some
    }

    fn push(&mut self, which: usize) {
        let chain = self.in_flight.remove(which % self.in_flight.len());
        self.device.push(chain, 0).unwrap();
    }

    fn take(&mut self) -> bool {
        // A chain that comes back twice is an error of the driver's end.
        let used = self.driver.take().unwrap();
        used.is_some_and(|used| self.taken.insert(used.token))
    }

    /// The process dies, and another takes its place.
    fn die(&mut self, death: Death, which: usize) {
        let (region, rings) = (self.region(), self.rings());
        let packed = self.config.features.contains(Features::RING_PACKED);
        match death {
            Death::Between => {}
            Death::InPop => {
                if self.pop() {
                    let mut cut = self.region();
                    if packed {
                        cut[14..16].copy_from_slice(&region[14..16]);
                    } else {
                        for head in 0..self.config.size as usize {
                            cut[16 + 16 * head] = region[16 + 16 * head];
                        }
                    }
                    self.set_region(&cut);
                }
            }
            _ if self.in_flight.is_empty() => {}
            Death::BeforeRing | Death::AfterRing | Death::Late => {
                self.push(which);
                let after = self.region();
                let mut cut = region;
                let late = matches!(death, Death::Late);
                if packed {
                    for range in [12..14, 16..18, 20..21] {
                        cut[range.clone()].copy_from_slice(&after[range]);
                    }
                    for entry in 0..self.config.size as usize {
                        let at = 32 + 32 * entry;
                        cut[at + 2..at + 4].copy_from_slice(&after[at + 2..at + 4]);
                        if late {
                            cut[at] = after[at];
                        }
                    }
                } else {
                    cut[12..14].copy_from_slice(&after[12..14]);
                    for head in 0..self.config.size as usize {
                        let at = 16 + 16 * head;
                        cut[at + 6..at + 8].copy_from_slice(&after[at + 6..at + 8]);
                        if late {
                            cut[at] = after[at];
                        }
                    }
                }
                // With IN_ORDER, several may have been let go or none: there is no state in between to be made from outside.
                if !self.config.features.contains(Features::IN_ORDER) {
                    self.set_region(&cut);
                    if matches!(death, Death::BeforeRing) {
                        self.memory.write_slice(&rings, GuestAddress(0)).unwrap();
                    }
                }
            }
        }
        self.in_flight.clear();
        self.device = Self::successor(&self.memory, &self.config, &self.area).unwrap();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Add(descriptors) => {
                let buffer = Buffer {
                    addr: GuestAddress(0x4000),
                    len: 64,
                    writable: false,
                };
                let buffers = vec![buffer; descriptors.into()];
                if self.driver.add(&buffers, self.added).is_ok() {
                    self.added += 1;
                }
            }
            Step::Pop => {
                self.pop();
            }
            Step::Push(_) if self.in_flight.is_empty() => {}
            Step::Push(which) => self.push(which),
            Step::Take => {
                self.take();
            }
            Step::Die(death, which) => self.die(death, which),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_chain_is_completed_once_whenever_the_device_dies(
        packed in any::<bool>(),
        in_order in any::<bool>(),
        size in prop_oneof![Just(4u32), Just(8)],
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mut rig = Rig::new(packed, in_order, size);
        for step in steps {
            rig.step(step);
        }
        while rig.pop() {}
        while !rig.in_flight.is_empty() {
            rig.push(0);
        }
        while rig.take() {}
        prop_assert_eq!(rig.taken.len(), rig.added as usize);
    }

    /// THREATS "a restored snapshot and a vhost-user peer are hostile": whatever a region holds, a queue starts from it or does not, and
    /// one that started works without a panic.
    #[test]
    fn any_region_is_refused_or_used(
        packed in any::<bool>(),
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        chains in 1u16..4,
    ) {
        let mut rig = Rig::new(packed, false, 4);
        for _ in 0..chains {
            rig.step(Step::Add(1));
            rig.pop();
        }
        let mut bytes = rig.region();
        for (at, value) in noise {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        rig.set_region(&bytes);
        rig.in_flight.clear();
        if let Ok(device) = Rig::successor(&rig.memory, &rig.config, &rig.area) {
            rig.device = device;
            let view = View::new(&rig.memory);
            for _ in 0..8 {
                match rig.device.pop(&view) {
                    Ok(Some(chain)) => { let _ = rig.device.push(chain, 0); }
                    Ok(None) => {}
                    Err(_) => break,
                }
            }
        }
    }
}

#[test]
fn the_region_lies_where_the_protocol_says() {
    let mut rig = Rig::new(false, false, 4);
    for _ in 0..3 {
        rig.step(Step::Add(1));
        rig.pop();
    }
    rig.push(1);
    let region = rig.region();
    // features, version, desc_num, last_batch_head, used_idx.
    assert_eq!(
        region[..16],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 4, 0, 1, 0, 1, 0]
    );
    let entries: Vec<&[u8]> = region[16..].chunks(16).take(3).collect();
    assert_eq!(entries[0], [1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(entries[1], [0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(entries[2], [1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);

    let mut rig = Rig::new(true, false, 4);
    rig.step(Step::Add(2));
    rig.pop();
    let region = rig.region();
    assert_eq!(region[8..22], [1, 0, 4, 0, 2, 0, 2, 0, 0, 0, 0, 0, 1, 1]);
    // inflight, padding, next, last, num, counter, id, flags, len, addr.
    assert_eq!(
        region[32..48],
        [1, 0, 1, 0, 1, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    );
    assert_eq!(region[52..64], [64, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn regions_that_do_not_fit_are_refused() {
    let rig = Rig::new(false, false, 4);
    let features = rig.config.features;
    let at = |offset, size| InFlightRegion::new(rig.area.clone(), offset, features, size);
    assert!(at(0, 4).is_some());
    for (offset, size) in [
        (64, 4),
        (4, 1),
        (0, 64),
        (0, 0),
        (0, 32769),
        (usize::MAX - 7, 1),
    ] {
        assert!(at(offset, size).is_none(), "{offset} {size}");
    }
    let refused = |bytes: &[(usize, u8)]| {
        let before = rig.region();
        let mut region = before.clone();
        for (at, value) in bytes {
            region[*at] = *value;
        }
        rig.set_region(&region);
        let error = Rig::successor(&rig.memory, &rig.config, &rig.area).unwrap_err();
        rig.set_region(&before);
        error
    };
    let state = |error| StartError::State(error);
    assert_eq!(refused(&[(8, 2)]), state(StateError::Version(2)));
    let size = StateError::RegionSize { found: 5, size: 4 };
    assert_eq!(refused(&[(10, 5)]), state(size));
    // A used index that is further than a queue away, and a batch that leads out of the table.
    assert!(matches!(
        refused(&[(14, 9)]),
        StartError::State(StateError::Entry(_))
    ));
    assert_eq!(
        refused(&[(14, 0xff), (15, 0xff), (12, 4)]),
        state(StateError::Entry(4))
    );
}
