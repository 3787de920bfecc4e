//! `IN_ORDER` (virtio 1.3 §2.7.9, §2.8.9): one used entry for several chains, as it lies in the ring, and what a driver makes of it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test code"
)]

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vring::{Buffer, Chain, DriverQueue, Error, Features, Queue, QueueConfig};

type Memory = GuestMemoryMmap<()>;

const DESC: u64 = 0x1000;
const USED: u64 = 0x3000;
const SIZE: u16 = 8;

/// Driver and device of one ring.
struct Ends<'m> {
    memory: &'m Memory,
    driver: DriverQueue<&'m Memory, u32>,
    device: Queue<&'m Memory>,
}

impl<'m> Ends<'m> {
    fn new(memory: &'m Memory, features: Features) -> Self {
        let config = QueueConfig {
            size: SIZE.into(),
            desc: GuestAddress(DESC),
            avail: GuestAddress(0x2000),
            used: GuestAddress(USED),
            features: features | Features::VERSION_1 | Features::IN_ORDER,
        };
        Self {
            memory,
            driver: DriverQueue::new(memory, &config).unwrap(),
            device: Queue::new(memory, &config, None).unwrap(),
        }
    }

    /// Makes a chain of each of these lengths available, in `slots` descriptors, and pops them.
    fn pass(&mut self, slots: u32, writable: &[u32]) -> Vec<Chain<&'m Memory>> {
        for (token, len) in (0..).zip(writable) {
            let readable = Buffer {
                addr: GuestAddress(0x4000),
                len: 16,
                writable: false,
            };
            let mut buffers = vec![readable; slots as usize];
            if *len != 0 {
                buffers.last_mut().unwrap().writable = true;
                buffers.last_mut().unwrap().len = *len;
            }
            self.driver.add(&buffers, token).unwrap();
        }
        let pop = |_| self.device.pop(&self.memory).unwrap().unwrap();
        writable.iter().map(pop).collect()
    }

    /// The tokens and lengths that come back.
    fn take(&mut self) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| self.driver.take().unwrap())
            .map(|used| (used.token, used.written))
            .collect()
    }

    fn word(&self, addr: u64) -> u16 {
        self.memory.read_obj(GuestAddress(addr)).unwrap()
    }

    /// The index of a split ring, and the ID and length in each slot.
    fn split_used(&self) -> (u16, [[u32; 2]; 4]) {
        let entry = |slot: u64| {
            let addr = GuestAddress(USED + 4 + 8 * slot);
            self.memory.read_obj(addr).unwrap()
        };
        (self.word(USED + 2), [0, 1, 2, 3].map(entry))
    }

    /// The buffer ID in each slot of a packed ring, if the slot is marked as used in the first round.
    fn packed_used(&self) -> [Option<u16>; 8] {
        [0u64, 1, 2, 3, 4, 5, 6, 7].map(|slot| {
            let at = DESC + 16 * slot;
            (self.word(at + 14) & 0x8080 == 0x8080).then(|| self.word(at + 12))
        })
    }
}

fn memory() -> Memory {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
}

#[test]
fn read_only_chains_share_the_entry_of_the_last_in_a_split_ring() {
    let memory = memory();
    let mut ends = Ends::new(&memory, Features::empty());
    let heads: Vec<u32> = {
        let chains = ends.pass(1, &[0, 0, 0, 16]);
        let heads = chains.iter().map(|chain| chain.head().into()).collect();
        for (chain, written) in chains.into_iter().zip([0, 0, 0, 5]) {
            ends.device.stage(chain, written).unwrap();
        }
        heads
    };
    assert_eq!(ends.split_used().0, 0);
    ends.device.publish().unwrap();
    // The fourth, which may be written, ends the run: its length is in the entry, which is in the slot of the first.
    assert_eq!(
        ends.split_used(),
        (4, [[heads[3], 5], [0, 0], [0, 0], [0, 0]])
    );
    assert_eq!(ends.take(), [(0, 0), (1, 0), (2, 0), (3, 5)]);
}

#[test]
fn a_chain_that_may_be_written_keeps_its_entry() {
    let memory = memory();
    let mut ends = Ends::new(&memory, Features::empty());
    let mut heads = Vec::new();
    for (chain, written) in ends.pass(1, &[16, 0, 16, 0]).into_iter().zip([16, 0, 3, 0]) {
        heads.push(u32::from(chain.head()));
        ends.device.stage(chain, written).unwrap();
    }
    ends.device.publish().unwrap();
    let expected = [[heads[0], 16], [heads[2], 3], [0, 0], [heads[3], 0]];
    assert_eq!(ends.split_used(), (4, expected));
    assert_eq!(ends.take(), [(0, 16), (1, 0), (2, 3), (3, 0)]);
}

#[test]
fn read_only_chains_share_the_descriptor_of_the_last_in_a_packed_ring() {
    let memory = memory();
    let mut ends = Ends::new(&memory, Features::RING_PACKED);
    let mut ids = Vec::new();
    for (chain, written) in ends.pass(2, &[0, 0, 0, 16]).into_iter().zip([0, 0, 0, 7]) {
        ids.push(chain.head());
        ends.device.stage(chain, written).unwrap();
    }
    assert_eq!(ends.packed_used(), [None; 8]);
    ends.device.publish().unwrap();
    let mut expected = [None; 8];
    expected[0] = Some(ids[3]);
    assert_eq!(ends.packed_used(), expected);
    assert_eq!(ends.take(), [(0, 0), (1, 0), (2, 0), (3, 7)]);
    // The positions went over all slots of the run.
    let chains = ends.pass(2, &[0, 0]);
    for chain in chains {
        ends.device.push(chain, 0).unwrap();
    }
    assert_eq!(ends.take(), [(0, 0), (1, 0)]);
}

/// What is pushed early waits, and then is part of the run.
#[test]
fn an_early_chain_waits_for_those_before_it() {
    for features in [Features::empty(), Features::RING_PACKED] {
        let memory = memory();
        let mut ends = Ends::new(&memory, features);
        let mut chains = ends.pass(1, &[0, 0, 0]);
        while let Some(chain) = chains.pop() {
            assert_eq!(ends.take(), []);
            ends.device.push(chain, 0).unwrap();
        }
        assert_eq!(ends.take(), [(0, 0), (1, 0), (2, 0)]);
    }
}

/// Runs of every length from every position, through several rounds of the ring.
#[test]
fn runs_of_every_length_at_every_position() {
    for features in [Features::empty(), Features::RING_PACKED] {
        let memory = memory();
        let mut ends = Ends::new(&memory, features);
        for turn in 0..40 {
            for len in 1..=usize::from(SIZE) {
                let writable = vec![if turn % 3 == 0 { 16 } else { 0 }; len];
                for chain in ends.pass(1, &writable) {
                    let written = u32::try_from(chain.writable_len()).unwrap();
                    ends.device.stage(chain, written).unwrap();
                }
                ends.device.publish().unwrap();
                let expected: Vec<_> = (0..).zip(writable).collect();
                assert_eq!(ends.take(), expected);
            }
        }
    }
}

#[test]
fn a_chain_that_waits_is_not_pushed_again_in_the_guise_of_another_queue() {
    for features in [Features::empty(), Features::RING_PACKED] {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let mut ends = Ends::new(&memory, features);
        let mut other = Ends::new(&memory, features).device;
        let mut chains = ends.pass(1, &[8, 8]);
        let mut foreign: Vec<_> = (0..2)
            .map(|_| other.pop(&&memory).unwrap().unwrap())
            .collect();
        let (late, head) = (chains.pop().unwrap(), foreign[1].head());
        ends.device.stage(late, 8).unwrap();
        let again = ends.device.stage(foreign.pop().unwrap(), 8);
        assert_eq!(again, Err(Error::NotInFlight(head)));
        ends.device.push(chains.pop().unwrap(), 8).unwrap();
        assert_eq!(ends.take().len(), 2);
    }
}
