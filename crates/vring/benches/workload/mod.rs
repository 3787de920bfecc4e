//! What is measured: a batch of chains is made available, popped, its buffers visited, and pushed back; here and in the peer.

use std::hint::black_box;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use virtio_queue::{Queue as Peer, QueueOwnedT, QueueT};
use vm_memory::{
    AtomicInteger, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileMemory,
};
use vring::{Buffer, Chain, DriverQueue, Features, Queue, QueueConfig};

const SIZE: u16 = 256;
const DESC: u64 = 0x1_0000;
const AVAIL: u64 = 0x2_0000;
const USED: u64 = 0x3_0000;
const TABLES: u64 = 0x4_0000;
const BUFFERS: u64 = 0x20_0000;

pub type Memory = GuestMemoryMmap<()>;

/// How a chain looks: `descs` descriptors, in the ring or in a table.
#[derive(Clone, Copy)]
pub struct Shape {
    pub descs: u16,
    pub indirect: bool,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} {}",
            self.descs,
            if self.indirect { "indirect" } else { "direct" }
        )
    }
}

/// The shapes and batches of the table in the documentation.
pub const CASES: [(Shape, u16); 7] = [
    (
        Shape {
            descs: 1,
            indirect: false,
        },
        1,
    ),
    (
        Shape {
            descs: 1,
            indirect: false,
        },
        16,
    ),
    (
        Shape {
            descs: 1,
            indirect: false,
        },
        256,
    ),
    (
        Shape {
            descs: 4,
            indirect: false,
        },
        16,
    ),
    (
        Shape {
            descs: 4,
            indirect: true,
        },
        16,
    ),
    (
        Shape {
            descs: 16,
            indirect: false,
        },
        16,
    ),
    (
        Shape {
            descs: 16,
            indirect: true,
        },
        16,
    ),
];

/// Memory as a virtual machine has it: with a hole below 4 GiB.
pub fn memory() -> Memory {
    GuestMemoryMmap::from_ranges(&[
        (GuestAddress(0), 0x100_0000),
        (GuestAddress(1 << 32), 0x100_0000),
    ])
    .unwrap()
}

fn config(features: Features) -> QueueConfig {
    QueueConfig {
        size: SIZE.into(),
        desc: GuestAddress(DESC),
        avail: GuestAddress(AVAIL),
        used: GuestAddress(USED),
        features: features | Features::VERSION_1 | Features::INDIRECT_DESC,
    }
}

/// Writes a descriptor; `rest` is flags and next (split), or ID and flags (packed).
fn write_desc(memory: &Memory, at: u64, buffer: u64, len: u32, rest: [u16; 2]) {
    memory.write_obj(buffer, GuestAddress(at)).unwrap();
    memory.write_obj(len, GuestAddress(at + 8)).unwrap();
    memory.write_obj(rest, GuestAddress(at + 12)).unwrap();
}

fn buffer(chain: u16, desc: u16) -> u64 {
    BUFFERS + 0x400 * u64::from(chain) + 0x40 * u64::from(desc)
}

/// Heads come again after as many chains.
fn chains(shape: Shape) -> u16 {
    if shape.indirect {
        SIZE
    } else {
        SIZE / shape.descs
    }
}

/// A split ring in which every slot of the available ring holds a chain, so that only the index has to be moved.
fn write_split(memory: &Memory, shape: Shape) {
    let chains = chains(shape);
    for chain in 0..chains {
        let (table, first) = if shape.indirect {
            let table = TABLES + 16 * 16 * u64::from(chain);
            write_desc(
                memory,
                DESC + 16 * u64::from(chain),
                table,
                16 * u32::from(shape.descs),
                [4, 0],
            );
            (table, 0)
        } else {
            (DESC, chain * shape.descs)
        };
        for i in 0..shape.descs {
            let flags = if i + 1 == shape.descs { 2 } else { 1 };
            let at = table + 16 * u64::from(first + i);
            write_desc(memory, at, buffer(chain, i), 64, [flags, first + i + 1]);
        }
    }
    for slot in 0..SIZE {
        let chain = slot % chains;
        let head = if shape.indirect {
            chain
        } else {
            chain * shape.descs
        };
        memory
            .write_obj(head, GuestAddress(AVAIL + 4 + 2 * u64::from(slot)))
            .unwrap();
    }
}

fn serve<'m>(
    memory: &'m Memory,
    queue: &mut Queue<&'m Memory>,
    chains: &mut Vec<Chain<&'m Memory>>,
    batch: u16,
) {
    for _ in 0..batch {
        chains.push(black_box(queue.pop(&memory).unwrap().unwrap()));
    }
    while let Some(chain) = chains.pop() {
        queue.stage(chain, 64).unwrap();
    }
    queue.publish().unwrap();
}

/// A word of guest memory as the driver has it.
fn word<T: AtomicInteger>(memory: &Memory, addr: u64) -> &T {
    memory
        .find_region(GuestAddress(addr))
        .unwrap()
        .get_atomic_ref(usize::try_from(addr).unwrap())
        .unwrap()
}

/// One turn of this crate's split queue.
pub fn split(memory: &Memory, shape: Shape, batch: u16) -> impl FnMut() {
    write_split(memory, shape);
    let mut queue = Queue::new(memory, &config(Features::empty()), None).unwrap();
    let mut chains = Vec::with_capacity(batch.into());
    let mut avail = 0u16;
    let idx: &AtomicU16 = word(memory, AVAIL + 2);
    move || {
        avail = avail.wrapping_add(batch);
        idx.store(avail, Ordering::Release);
        serve(memory, &mut queue, &mut chains, batch);
    }
}

/// What makes a batch of descriptors of a packed ring available again, again and again. It is measured with the device's side, so it is
/// as short as can be: nobody writes the addresses again, and the other words are those of the lap before but for the marks.
fn write_packed(memory: &Memory, shape: Shape, batch: u16) -> impl FnMut() {
    for chain in 0..chains(shape) {
        for i in 0..shape.descs {
            let at = TABLES + 16 * 16 * u64::from(chain) + 16 * u64::from(i);
            let last = i + 1 == shape.descs;
            write_desc(memory, at, buffer(chain, i), 64, [0, u16::from(last) * 2]);
        }
    }
    let slots = if shape.indirect { 1 } else { shape.descs };
    let lap = |marks: u64| {
        (0..SIZE).map(move |slot| {
            let (chain, i) = (slot / slots, slot % slots);
            let (addr, len, flags) = if shape.indirect {
                let table = TABLES + 16 * 16 * u64::from(chain);
                (table, 16 * u64::from(shape.descs), 4)
            } else if i + 1 == slots {
                (buffer(chain, i), 64, 2)
            } else {
                (buffer(chain, i), 64, 1)
            };
            let at = DESC + 16 * u64::from(slot);
            memory.write_obj(addr, GuestAddress(at)).unwrap();
            let place: &AtomicU64 = word(memory, at + 8);
            (place, len | u64::from(chain) << 32 | flags << 48 | marks)
        })
    };
    let laps: Vec<_> = lap(1 << 55).chain(lap(1 << 63)).collect();
    let batch = usize::from(batch * slots);
    assert!(laps.len().is_multiple_of(batch));
    let mut at = 0;
    move || {
        for (place, word) in &laps[at..at + batch] {
            place.store(*word, Ordering::Release);
        }
        at = (at + batch) % laps.len();
    }
}

/// One turn of this crate's packed queue.
pub fn packed(memory: &Memory, shape: Shape, batch: u16) -> impl FnMut() {
    let mut drive = write_packed(memory, shape, batch);
    let mut queue = Queue::new(memory, &config(Features::RING_PACKED), None).unwrap();
    let mut in_flight = Vec::with_capacity(batch.into());
    move || {
        drive();
        serve(memory, &mut queue, &mut in_flight, batch);
    }
}

/// One turn of this crate's driver and its device, with buffers that the device reads.
#[allow(dead_code, reason = "each benchmark uses a part")]
pub fn both(memory: &Memory, features: Features, batch: u16) -> impl FnMut() {
    let config = config(features);
    let mut driver = DriverQueue::new(memory, &config).unwrap();
    let mut device = Queue::new(memory, &config, None).unwrap();
    let buffer = [Buffer {
        addr: GuestAddress(BUFFERS),
        len: 64,
        writable: false,
    }];
    move || {
        for token in 0..batch {
            driver.add(&buffer, token).unwrap();
        }
        for _ in 0..batch {
            let chain = black_box(device.pop(&memory).unwrap().unwrap());
            device.stage(chain, 0).unwrap();
        }
        device.publish().unwrap();
        for token in 0..batch {
            assert_eq!(driver.take().unwrap().unwrap().token, token);
        }
    }
}

/// One turn of `virtio-queue`, which does not translate the buffers.
pub fn peer(memory: &Memory, shape: Shape, batch: u16) -> impl FnMut() {
    write_split(memory, shape);
    let mut queue = Peer::new(SIZE).unwrap();
    queue.set_size(SIZE);
    queue.set_desc_table_address(Some(u32::try_from(DESC).unwrap()), None);
    queue.set_avail_ring_address(Some(u32::try_from(AVAIL).unwrap()), None);
    queue.set_used_ring_address(Some(u32::try_from(USED).unwrap()), None);
    queue.set_ready(true);
    assert!(queue.is_valid(memory));
    let mut heads = Vec::with_capacity(batch.into());
    let mut avail = 0u16;
    let idx: &AtomicU16 = word(memory, AVAIL + 2);
    move || {
        avail = avail.wrapping_add(batch);
        idx.store(avail, Ordering::Release);
        for chain in queue.iter(memory).unwrap() {
            heads.push(chain.head_index());
            for descriptor in chain {
                black_box(descriptor);
            }
        }
        while let Some(head) = heads.pop() {
            queue.add_used(memory, head, 64).unwrap();
        }
    }
}
