//! Rings: a driver that does anything to a device's queue, a device that does anything to a driver's, both ends against each other, and
//! this crate against `virtio-queue`.

use std::sync::Arc;

use virtio_queue::{Queue as Peer, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vring::{Buffer, Chain, DriverQueue, Error, Features, Queue, QueueConfig, View};

use crate::input::Input;

type Memory = Arc<GuestMemoryMmap<()>>;

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x1200;
const USED: u64 = 0x1400;
/// End of what is written at random: the rings and some tables.
const RINGS: u64 = 0x2000;

impl Input<'_> {
    /// Mostly a small number, sometimes any.
    fn number(&mut self) -> u16 {
        match self.byte() {
            0xff => self.u16(),
            small => u16::from(small % 20),
        }
    }

    /// An address that is mostly in memory.
    fn addr(&mut self) -> u64 {
        match self.byte() {
            0xff => u64::from(self.u16()) << 48 | u64::from(self.u16()),
            page => u64::from(page % 18) * 0x1000 + u64::from(self.byte()),
        }
    }
}

fn memory() -> Option<Memory> {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x8000), (GuestAddress(0x8000), 0x8000)])
        .ok()
        .map(Arc::new)
}

fn config(input: &mut Input<'_>, packed: bool) -> QueueConfig {
    let flags = input.byte();
    let mut features = Features::VERSION_1;
    features.set(Features::RING_PACKED, packed);
    features.set(Features::EVENT_IDX, flags & 1 != 0);
    features.set(Features::INDIRECT_DESC, flags & 2 != 0);
    features.set(Features::IN_ORDER, flags & 4 != 0);
    let size = u32::from(input.byte() % 16 + 1);
    QueueConfig {
        size: if packed {
            size
        } else {
            size.next_power_of_two()
        },
        desc: GuestAddress(DESC),
        avail: GuestAddress(AVAIL),
        used: GuestAddress(USED),
        features,
    }
}

/// Changes guest memory as a hostile or an honest driver may: anything in the rings, or a descriptor that makes sense.
fn scribble(input: &mut Input<'_>, memory: &Memory) {
    let choice = input.byte();
    if choice & 1 == 0 {
        let at = DESC + u64::from(input.u16()) % (RINGS - DESC - 2);
        let _ = memory.write_obj(input.u16(), GuestAddress(at));
        return;
    }
    // A descriptor, in the ring or in a table after the rings; flags fit either format.
    let table = if choice & 2 == 0 { DESC } else { RINGS - 0x100 };
    let at = table + 16 * (u64::from(input.number()) % 16);
    let addr = if choice & 4 == 0 {
        input.addr()
    } else {
        RINGS - 0x100
    };
    let _ = memory.write_obj(addr, GuestAddress(at));
    let _ = memory.write_obj(
        u32::from(input.number()) * if choice & 8 == 0 { 1 } else { 16 },
        GuestAddress(at + 8),
    );
    let (third, fourth) = (input.number(), input.number());
    let _ = memory.write_obj(third, GuestAddress(at + 12));
    let marks = u16::from(input.byte() & 0x81) << 8 | u16::from(input.byte() & 0x80);
    let _ = memory.write_obj(fourth | marks, GuestAddress(at + 14));
}

/// What holds of every chain that is popped.
fn check(chain: &Chain<View<Memory>>, config: &QueueConfig) {
    assert!(u32::from(chain.head()) < config.size);
    let readable: usize = chain.reader().slices().map(|slice| slice.len()).sum();
    let writable: usize = chain.writer().slices().map(|slice| slice.len()).sum();
    assert_eq!(
        (readable as u64, writable as u64),
        (chain.readable_len(), chain.writable_len())
    );
    let mut reader = chain.reader();
    let mut header = [0; 20];
    let read = reader.read(&mut header);
    assert_eq!(read, readable.min(20));
    assert_eq!(reader.remaining(), (readable - read) as u64);
}

/// A device's split queue under a driver that does anything.
pub fn split(data: &[u8]) {
    device(data, false);
}

/// A device's packed queue under a driver that does anything.
pub fn packed(data: &[u8]) {
    device(data, true);
}

fn device(data: &[u8], packed: bool) {
    let mut input = Input(data);
    let Some(memory) = memory() else { return };
    let config = config(&mut input, packed);
    serve(&mut input, &memory, &config);
}

/// A device's queue of either format while another thread, the driver's, writes to the rings and tables.
pub fn mutator(data: &[u8]) {
    let mut input = Input(data);
    let Some(memory) = memory() else { return };
    let packed = input.byte() & 1 != 0;
    let config = config(&mut input, packed);
    let (device, driver) = input.0.split_at(input.0.len() / 2);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for _ in 0..4 {
                let mut input = Input(driver);
                while !input.0.is_empty() {
                    if input.byte() & 1 == 0 {
                        scribble(&mut input, &memory);
                    } else {
                        step_avail(&memory);
                    }
                }
            }
        });
        // What breaks the queue does not end the run: the driver resets it.
        let mut input = Input(device);
        while !input.0.is_empty() {
            serve(&mut input, &memory, &config);
        }
        // The scope does not wait for the thread's last steps, in which what it still holds looks like a leak.
        let _ended = writer.join();
    });
}

/// An honest step of a split ring's available index.
fn step_avail(memory: &Memory) {
    let index: u16 = memory.read_obj(GuestAddress(AVAIL + 2)).unwrap_or(0);
    let _ = memory.write_obj(index.wrapping_add(1), GuestAddress(AVAIL + 2));
}

/// A device's queue, until the input ends or the queue breaks.
fn serve(input: &mut Input<'_>, memory: &Memory, config: &QueueConfig) {
    let packed = config.features.contains(Features::RING_PACKED);
    let Ok(mut queue) = Queue::new(memory.clone(), config, None) else {
        input.0 = &[];
        return;
    };
    let view = View::new(memory);
    let mut in_flight = Vec::new();
    while !input.0.is_empty() {
        match input.byte() % 10 {
            0..=3 => scribble(input, memory),
            4 if !packed => step_avail(memory),
            5 | 4 => match queue.pop(&view) {
                Ok(Some(chain)) => {
                    check(&chain, config);
                    in_flight.push(chain);
                    assert!(in_flight.len() <= config.size as usize);
                }
                Ok(None) => {}
                Err(error) => {
                    assert!(matches!(
                        error,
                        Error::AvailIndex { .. } | Error::Chain { .. } | Error::Broken
                    ));
                    assert_eq!(queue.pop(&view).err(), Some(Error::Broken));
                    return;
                }
            },
            6 if !in_flight.is_empty() => {
                let chain = in_flight.swap_remove(usize::from(input.byte()) % in_flight.len());
                let written = chain.writer().write(&[0xa5; 100]);
                let pushed = queue.push(chain, u32::try_from(written).unwrap_or(u32::MAX));
                assert!(pushed.is_ok());
            }
            7 => {
                let _ = queue.needs_interrupt();
                let _ = queue.disable_kicks();
                if queue.enable_kicks().is_err() {
                    return;
                }
            }
            8 => {
                let state = queue.save();
                in_flight.clear();
                let restored = Queue::new(memory.clone(), config, Some(&state));
                assert!(restored.is_ok());
                if let Ok(restored) = restored {
                    assert_eq!(restored.save(), state);
                    queue = restored;
                }
            }
            _ => queue.unmap(),
        }
    }
}

/// A driver's queue under a device that does anything.
pub fn driver(data: &[u8]) {
    let mut input = Input(data);
    let Some(memory) = memory() else { return };
    let packed = input.byte() & 1 != 0;
    let config = config(&mut input, packed);
    let Ok(mut queue) = DriverQueue::new(memory.clone(), &config) else {
        return;
    };
    let mut in_flight = std::collections::HashMap::new();
    let mut token = 0u32;
    while !input.0.is_empty() {
        match input.byte() % 5 {
            0 => {
                let writable = u32::from(input.number());
                let buffers = [(8, false), (writable, true)].map(|(len, writable)| Buffer {
                    addr: GuestAddress(0x4000),
                    len,
                    writable,
                });
                if queue.add(&buffers, token).is_ok() {
                    in_flight.insert(token, writable);
                    token += 1;
                }
            }
            1 => match queue.take() {
                Ok(Some(used)) => {
                    let writable = in_flight.remove(&used.token);
                    assert!(writable.is_some_and(|writable| used.written <= writable));
                }
                Ok(None) => {}
                Err(_) => {
                    assert!(queue.take().is_err());
                    break;
                }
            },
            2 => {
                queue.disable_interrupts();
                queue.enable_interrupts();
                queue.needs_kick();
            }
            _ => scribble(&mut input, &memory),
        }
    }
    assert_eq!(queue.into_tokens().count(), in_flight.len());
}

/// Driver and device against each other: everything that is made available is popped once, in order, and taken once.
pub fn both_ends(data: &[u8]) {
    let mut input = Input(data);
    let Some(memory) = memory() else { return };
    let packed = input.byte() & 1 != 0;
    let config = config(&mut input, packed);
    let in_order = config.features.contains(Features::IN_ORDER);
    let Ok(mut driver) = DriverQueue::new(memory.clone(), &config) else {
        return;
    };
    let Ok(mut device) = Queue::new(memory.clone(), &config, None) else {
        return;
    };
    let view = View::new(&memory);
    let (mut added, mut popped, mut taken) = (0u32, 0u32, 0u32);
    let mut in_flight = Vec::new();
    let mut pushed = std::collections::VecDeque::new();
    while !input.0.is_empty() {
        match input.byte() % 5 {
            0 | 1 => {
                let count = usize::from(input.byte() % 5) + 1;
                let buffers: Vec<Buffer> = (0..count)
                    .map(|i| Buffer {
                        addr: GuestAddress(0x4000),
                        len: if i == 0 { added } else { 1 },
                        writable: i > 0,
                    })
                    .map(|buffer| Buffer {
                        len: buffer.len % 0x1000,
                        ..buffer
                    })
                    .collect();
                let table = GuestAddress(0x6000 + 0x100 * u64::from(added % 32));
                let result = if input.byte() & 1 == 0
                    || !config.features.contains(Features::INDIRECT_DESC)
                {
                    driver.add(&buffers, added)
                } else {
                    driver.add_indirect(table, &buffers, added)
                };
                added += u32::from(result.is_ok());
            }
            2 => match device.pop(&view) {
                Ok(Some(chain)) => {
                    check(&chain, &config);
                    assert_eq!(chain.readable_len(), u64::from(popped % 0x1000));
                    in_flight.push((popped, chain));
                    popped += 1;
                }
                Ok(None) => assert_eq!(popped, added),
                Err(error) => assert_eq!(Err(error), Ok(())),
            },
            3 if !in_flight.is_empty() => {
                let (token, chain) =
                    in_flight.swap_remove(usize::from(input.byte()) % in_flight.len());
                let written = u32::try_from(chain.writable_len()).unwrap_or(0);
                assert_eq!(device.push(chain, written), Ok(()));
                pushed.push_back((token, written));
            }
            _ => match driver.take() {
                Ok(Some(used)) => {
                    let index = pushed.iter().position(|(token, _)| *token == used.token);
                    assert_eq!(
                        index.and_then(|index| pushed.remove(index)),
                        Some((used.token, used.written))
                    );
                    assert!(!in_order || used.token == taken);
                    taken += 1;
                }
                Ok(None) => assert!(pushed.is_empty() || in_order),
                Err(error) => assert_eq!(Err(error), Ok(())),
            },
        }
    }
}

/// This crate's split queue beside `virtio-queue` on the same memory. What this crate pops, the peer pops too, with the same bytes. Where this
/// crate finds an error, the peer may not: it ends a bad chain early as if it were whole, and takes chains out of order, longer than the
/// queue, or twice. Those are the disagreements that are known, and the reason for this crate's errors.
pub fn differential(data: &[u8]) {
    let mut input = Input(data);
    let Some(memory) = memory() else { return };
    let mut config = config(&mut input, false);
    config.features = Features::VERSION_1 | Features::INDIRECT_DESC;
    let Ok(size) = config.validate() else { return };
    let Ok(mut queue) = Queue::new(memory.clone(), &config, None) else {
        return;
    };
    let Ok(mut peer) = Peer::new(size) else {
        return;
    };
    peer.set_size(size);
    let low = |addr: u64| u32::try_from(addr).ok();
    peer.set_desc_table_address(low(DESC), None);
    peer.set_avail_ring_address(low(AVAIL), None);
    peer.set_used_ring_address(low(USED), None);
    peer.set_ready(true);
    let view = View::new(&memory);
    let mut popped = 0u16;
    while !input.0.is_empty() {
        match input.byte() % 4 {
            0 | 1 => {
                // The index only steps: this crate reads it once for all that it covers, the peer each time.
                let index: u16 = memory.read_obj(GuestAddress(AVAIL + 2)).unwrap_or(0);
                scribble(&mut input, &memory);
                let _ = memory.write_obj(index, GuestAddress(AVAIL + 2));
            }
            2 => {
                let index: u16 = memory.read_obj(GuestAddress(AVAIL + 2)).unwrap_or(0);
                // Nor does it pass the queue size, which the peer notices while this crate still has chains that it read before.
                if index.wrapping_sub(popped) < size {
                    let _ = memory.write_obj(index.wrapping_add(1), GuestAddress(AVAIL + 2));
                }
            }
            _ => {
                let ours = queue.pop(&view);
                let theirs = peer.iter(&*memory);
                let (ours, theirs) = match (ours, theirs) {
                    (Ok(Some(chain)), Ok(mut chains)) => (chain, chains.next()),
                    (Ok(None), Ok(mut chains)) => {
                        assert!(chains.next().is_none());
                        continue;
                    }
                    (Ok(_), Err(_)) => {
                        assert_eq!("the peer alone finds an error", "");
                        return;
                    }
                    (Err(_), _) => return,
                };
                let bytes = theirs.map(|chain| {
                    let head = chain.head_index();
                    let mut lens = [0u64; 2];
                    for descriptor in chain {
                        let [readable, writable] = &mut lens;
                        let len = if descriptor.is_write_only() {
                            writable
                        } else {
                            readable
                        };
                        *len += u64::from(descriptor.len());
                    }
                    (head, lens)
                });
                assert_eq!(
                    bytes,
                    Some((ours.head(), [ours.readable_len(), ours.writable_len()]))
                );
                let head = ours.head();
                popped = popped.wrapping_add(1);
                assert_eq!(queue.push(ours, 0), Ok(()));
                assert!(peer.add_used(&*memory, head, 0).is_ok());
            }
        }
    }
}

/// A target: its name, and what it runs.
pub type Target = (&'static str, fn(&[u8]));

/// The targets of this module.
pub const TARGETS: [Target; 6] = [
    ("vring_split", split),
    ("vring_packed", packed),
    ("vring_mutator", mutator),
    ("vring_driver", driver),
    ("vring_both_ends", both_ends),
    ("vring_differential", differential),
];
