//! The devices over packed rings (virtio 1.3 §2.8), with vring's own driver at the other end. `net_rings.rs` has the network device.
#![expect(clippy::unwrap_used, reason = "test code")]

mod driver;

use std::io::{Read, Write};
use std::sync::Arc;

use driver::{Memory, memory, start_ring, wait_until};
use virtio_devices::block::{Block, BlockOptions, MemoryDisk};
use virtio_devices::console::{Console, Port};
use virtio_devices::rng::Rng;
use virtio_devices::{VirtioDevice, Worker};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;
use vring::{Buffer, DriverQueue, Features};

/// Not a power of two, and so small that the rings wrap often.
const SIZE: u32 = 5;

/// A packed queue: its ring at a megabyte of its own, its buffers above.
struct Queue {
    memory: Memory,
    base: u64,
    ring: DriverQueue<Memory, ()>,
    kick: Arc<EventFd>,
}

impl Queue {
    fn start(device: &dyn VirtioDevice<Memory>, memory: &Memory, index: u16, extra: u64) -> Self {
        let base = u64::from(index) << 20;
        let features = (Features::VERSION_1 | Features::RING_PACKED).bits() | extra;
        let (ring, kick) = start_ring(device, memory, (index, base), SIZE, features);
        Self {
            memory: memory.clone(),
            base,
            ring,
            kick,
        }
    }

    /// Offers readable bytes, and room for `write` bytes in two descriptors.
    fn offer(&mut self, read: &[u8], write: usize) {
        let addr = self.base + 0x8000;
        self.memory.write_slice(read, GuestAddress(addr)).unwrap();
        let buffer = |offset: usize, len: usize, writable| Buffer {
            addr: GuestAddress(addr + offset as u64),
            len: u32::try_from(len).unwrap(),
            writable,
        };
        let mut buffers = vec![buffer(0, read.len(), false)];
        if write != 0 {
            let cut = write.div_ceil(2);
            buffers.push(buffer(read.len(), cut, true));
            buffers.push(buffer(read.len() + cut, write - cut, true));
        }
        buffers.retain(|buffer| buffer.len != 0);
        self.ring.add(&buffers, ()).unwrap();
        if self.ring.needs_kick() {
            self.kick.write(1).unwrap();
        }
    }

    /// Waits for the chain, and returns what the device wrote after the `read` readable bytes.
    fn used(&mut self, read: usize) -> Vec<u8> {
        let mut taken = None;
        wait_until("nothing is used", || {
            taken = self.ring.take().unwrap();
            taken.is_some()
        });
        let mut bytes = vec![0; taken.unwrap().written as usize];
        let addr = GuestAddress(self.base + 0x8000 + read as u64);
        self.memory.read_slice(&mut bytes, addr).unwrap();
        bytes
    }

    fn round_trip(&mut self, read: &[u8], write: usize) -> Vec<u8> {
        self.offer(read, write);
        self.used(read.len())
    }
}

#[test]
fn a_disk_reads_and_writes_over_packed_rings() {
    for event_idx in [0, Features::EVENT_IDX.bits()] {
        let disk = MemoryDisk::new(vec![0; 64 * 512], false);
        let workers = vec![Worker::spawn("disk").unwrap()];
        let device = Block::new(disk, workers, BlockOptions::default()).unwrap();
        let mut queue = Queue::start(&device, &memory(1), 0, event_idx);
        let request = |kind: u32, sector: u64| {
            let mut header = [kind.to_le_bytes(), [0; 4]].concat();
            header.extend(sector.to_le_bytes());
            header
        };
        for sector in 0..40 {
            let data = [u8::try_from(sector).unwrap() + 1; 512];
            let write = [request(1, sector), data.to_vec()].concat();
            assert_eq!(queue.round_trip(&write, 1), [0]);
            let read = queue.round_trip(&request(0, sector), 513);
            assert_eq!(read, [&data[..], &[0]].concat());
        }
    }
}

#[test]
fn entropy_comes_over_packed_rings() {
    let device = Rng::new(std::io::repeat(7), Worker::spawn("rng").unwrap());
    let mut queue = Queue::start(&device, &memory(1), 0, 0);
    for _ in 0..40 {
        assert_eq!(queue.round_trip(&[], 33), [7; 33]);
    }
}

#[test]
fn characters_go_both_ways_over_packed_rings() {
    let (port, mut host) = Port::console().connected().unwrap();
    let device = Console::new(vec![port], Worker::spawn("console").unwrap()).unwrap();
    let memory = memory(1);
    let mut input = Queue::start(&device, &memory, 0, 0);
    let mut output = Queue::start(&device, &memory, 1, 0);
    for _ in 0..40 {
        assert!(output.round_trip(b"hello", 0).is_empty());
        let mut read = [0; 5];
        host.read_exact(&mut read).unwrap();
        assert_eq!(&read, b"hello");
        input.offer(&[], 20);
        host.write_all(b"world").unwrap();
        assert_eq!(input.used(0), b"world");
    }
}
