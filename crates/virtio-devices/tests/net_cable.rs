//! Frames that come back through a cable.
#![expect(clippy::unwrap_used, reason = "test code")]

mod driver;

use std::sync::Arc;
use std::time::Duration;

use driver::{Memory, memory, start_ring, wait_until};
use virtio_devices::net::spec::HEADER;
use virtio_devices::net::{CABLE_FRAMES, Cable, MacAddress, Net};
use virtio_devices::{VirtioDevice, Worker};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;
use vring::{Buffer, DriverQueue};

const VERSION_1: u64 = 1 << 32;
const IN_ORDER: u64 = 1 << 35;
const PACKED: u64 = 1 << 34;
const BUFFER: u32 = 0x100;

/// A ring at the start of `base`, with as many buffers as descriptors behind it.
struct Queue {
    memory: Memory,
    base: u64,
    ring: DriverQueue<Memory, u64>,
    kick: Arc<EventFd>,
}

impl Queue {
    const SIZE: u32 = 64;

    fn start(net: &Net<Cable>, memory: &Memory, index: u16, features: u64) -> Self {
        let base = u64::from(index) << 20;
        let (ring, kick) = start_ring(net, memory, (index, base), Self::SIZE, features);
        let memory = memory.clone();
        Self {
            memory,
            base,
            ring,
            kick,
        }
    }

    fn offer(&mut self, slot: u64, bytes: Option<&[u8]>) {
        let addr = self.base + 0x8000 + slot * u64::from(BUFFER);
        if let Some(bytes) = bytes {
            self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
        }
        let buffer = Buffer {
            addr: GuestAddress(addr),
            len: bytes.map_or(BUFFER, |bytes| u32::try_from(bytes.len()).unwrap()),
            writable: bytes.is_none(),
        };
        self.ring.add(&[buffer], addr).unwrap();
        if self.ring.needs_kick() {
            self.kick.write(1).unwrap();
        }
    }

    /// What is in the next used buffer.
    fn used(&mut self) -> Vec<u8> {
        let mut used = None;
        wait_until("nothing is used", || {
            used = self.ring.take().unwrap();
            used.is_some()
        });
        let used = used.unwrap();
        let mut bytes = vec![0; usize::try_from(used.written).unwrap()];
        let at = GuestAddress(used.token);
        self.memory.read_slice(&mut bytes, at).unwrap();
        bytes
    }
}

/// The frame with this number, each of another length than those before and after it.
fn frame(number: u64) -> Vec<u8> {
    let mut frame = vec![0; HEADER + 14];
    frame.extend(number.to_le_bytes());
    frame.extend(vec![7; usize::try_from(number % 150).unwrap()]);
    frame
}

fn net() -> Net<Cable> {
    let mac = MacAddress([2, 0, 0, 0, 0, 1]);
    let workers = vec![Worker::spawn("net").unwrap()];
    Net::new(Cable::looped(1).unwrap(), mac, workers).unwrap()
}

#[test]
fn frames_come_back_as_they_were_sent() {
    for layout in [0, IN_ORDER, PACKED, PACKED | IN_ORDER] {
        let (net, memory) = (net(), memory(1));
        let [mut receive, mut transmit] =
            [0, 1].map(|index| Queue::start(&net, &memory, index, VERSION_1 | layout));
        let mut number = 0;
        for burst in [1, 2, 31, 32, 33, 64] {
            // The queues are asleep at times, and awake at others.
            std::thread::sleep(Duration::from_millis(burst % 3));
            for slot in 0..burst {
                transmit.offer(slot, Some(&frame(number + slot)));
            }
            for slot in 0..burst {
                receive.offer(slot, None);
            }
            for _ in 0..burst {
                let mut wanted = frame(number);
                // `num_buffers`.
                if let Some(low) = wanted.get_mut(10) {
                    *low = 1;
                }
                assert_eq!(receive.used(), wanted, "{layout:#x}");
                assert!(transmit.used().is_empty());
                number += 1;
            }
        }
        let counted = net.statistics();
        assert_eq!((counted.received, counted.transmitted), (number, number));
    }
}

#[test]
fn a_full_cable_drops_and_holds_what_it_has() {
    let (net, memory) = (net(), memory(1));
    let [_, mut transmit] = [0, 1].map(|index| Queue::start(&net, &memory, index, VERSION_1));
    let limit = u64::try_from(CABLE_FRAMES).unwrap();
    let sent = limit + 100;
    for number in 0..sent {
        transmit.offer(0, Some(&frame(number)));
        transmit.used();
    }
    let dropped = || net.statistics().transmit_dropped;
    wait_until("frames are held without end", || dropped() > 0);
    // What the receiver works on does not count for the sender.
    let held = sent - dropped();
    assert!((limit..limit + 100).contains(&held), "{held}");
    // A receive queue that stops and starts again goes on where it was.
    VirtioDevice::<Memory>::stop_queue(&net, 0);
    let mut receive = Queue::start(&net, &memory, 0, VERSION_1);
    for number in 0..held {
        receive.offer(0, None);
        assert_eq!(
            receive.used().get(HEADER + 14..HEADER + 22),
            Some(&number.to_le_bytes()[..])
        );
    }
}
