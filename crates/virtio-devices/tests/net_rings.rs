//! The network device over every layout of ring, with vring's own driver at the other end.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

mod driver;

use std::sync::Arc;

use driver::{Memory, memory, start_ring, wait_until};
use virtio_devices::Worker;
use virtio_devices::net::spec::HEADER;
use virtio_devices::net::{MacAddress, MemoryNet, Net, NetBackend, spec};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;
use vring::{Buffer, DriverQueue, Used};

const OWN: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);

/// One queue: its ring at a megabyte of its own, its buffers above.
struct Queue {
    memory: Memory,
    base: u64,
    ring: DriverQueue<Memory, u64>,
    kick: Arc<EventFd>,
    next: u64,
}

impl Queue {
    fn start(device: &Net<MemoryNet>, memory: &Memory, index: u16, features: u64) -> Self {
        let base = u64::from(index) << 20;
        let (ring, kick) = start_ring(device, memory, (index, base), 8, features);
        Self {
            memory: memory.clone(),
            base,
            ring,
            kick,
            next: 0,
        }
    }

    /// Offers a buffer of two descriptors, the first of `cut` bytes.
    fn offer(&mut self, len: u32, cut: u32, write: bool, bytes: &[u8]) {
        let addr = self.base + 0x8000 + self.next;
        self.next = (self.next + 0x1000) % 0x2_0000;
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
        let buffer = |addr, len| Buffer {
            addr: GuestAddress(addr),
            len,
            writable: write,
        };
        let buffers = [buffer(addr, cut), buffer(addr + u64::from(cut), len - cut)];
        self.ring.add(&buffers, addr).unwrap();
        if self.ring.needs_kick() {
            self.kick.write(1).unwrap();
        }
    }

    fn used(&mut self) -> Vec<u8> {
        let mut taken = None;
        wait_until("nothing is used", || {
            taken = self.ring.take().unwrap();
            taken.is_some()
        });
        let Used { token, written, .. } = taken.unwrap();
        let mut bytes = vec![0; usize::try_from(written).unwrap()];
        self.memory
            .read_slice(&mut bytes, GuestAddress(token))
            .unwrap();
        bytes
    }
}

/// A frame of `len` bytes with its header.
fn frame(len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
    frame[..HEADER].fill(0);
    frame[HEADER..HEADER + 6].copy_from_slice(&OWN.0);
    frame
}

#[test]
fn frames_go_both_ways_over_every_ring() {
    let layouts = [0, 1 << 29, 1 << 34, 1 << 34 | 1 << 29];
    for layout in layouts {
        let features = layout | 1 << 32 | spec::Features::MRG_RXBUF.bits();
        let net = MemoryNet::new(1, spec::Features::empty()).unwrap();
        let device = Net::new(net, OWN, vec![Worker::spawn("net").unwrap()]).unwrap();
        let port = device.backend().ports()[0].clone();
        let memory = memory(1);
        let mut rx = Queue::start(&device, &memory, 0, features);
        let mut tx = Queue::start(&device, &memory, 1, features);
        for round in 0..40 {
            let out = frame(30 + round);
            tx.offer(u32::try_from(out.len()).unwrap(), 10, false, &out);
            assert!(tx.used().is_empty());
            assert_eq!(port.sent().unwrap(), out);

            // Three buffers, of which the last comes after the frame has waited for it.
            let mut wanted = frame(260);
            port.inject(wanted.clone());
            for _ in 0..2 {
                rx.offer(100, 7, true, &[]);
            }
            wait_until("the frame is not taken", || port.pending() == 0);
            rx.offer(100, 50, true, &[]);
            wanted[10] = 3;
            assert_eq!(
                [rx.used(), rx.used(), rx.used()].concat(),
                wanted,
                "{features:#x}"
            );
        }
    }
}
