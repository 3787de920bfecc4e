//! A driver that does anything to a network device: its rings, frames and control commands.

use std::sync::Arc;

use virtio_devices::net::spec::{ETHERNET_HEADER, Features, HEADER, MAX_FRAME};
use virtio_devices::net::{MacAddress, MemoryNet, MemoryPort, Net, NetBackend};
use virtio_devices::{QueueInterrupt, QueueResources, VirtioDevice, Worker};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vring::{QueueConfig, QueueState};

type Memory = Arc<GuestMemoryMmap>;

const MEMORY: usize = 0x1_0000;
const QUEUES: u16 = 3;
const QUEUE_SIZE: u16 = 16;
/// Each queue has a page for each of its areas.
const QUEUE_MEMORY: u64 = 0x3000;
/// Where buffers begin.
const BUFFERS: u64 = 0x9000;
/// VIRTIO_F_VERSION_1, and INDIRECT_DESC, EVENT_IDX and RING_PACKED for the driver to choose.
const VERSION_1: u64 = 1 << 32;
const RING_FEATURES: [u64; 3] = [1 << 28, 1 << 29, 1 << 34];

const OFFLOADS: Features = Features::GUEST_OFFLOADS.union(Features::HOST_OFFLOADS);

struct Silent;

impl QueueInterrupt for Silent {
    fn trigger(&self) {}
}

struct Guest {
    memory: Memory,
    device: Net<MemoryNet>,
    features: u64,
    avail: [u16; QUEUES as usize],
    states: [Option<QueueState>; QUEUES as usize],
}

impl Guest {
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let net = MemoryNet::new(1, OFFLOADS)?;
        let device = Net::new(
            net,
            MacAddress([2, 0, 0, 0, 0, 1]),
            vec![Worker::spawn("fuzz")?],
        )?;
        Ok(Self {
            memory: Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])?),
            device,
            features: VERSION_1,
            avail: [0; QUEUES as usize],
            states: Default::default(),
        })
    }

    fn port(&self) -> Option<&MemoryPort> {
        self.device.backend().ports().first().map(|port| &**port)
    }

    /// Has the device serve a queue for a turn: that is done when it has started.
    fn serve(&mut self, queue: u16) {
        let base = u64::from(queue) * QUEUE_MEMORY;
        let Ok(kick) = EventFd::new(EFD_NONBLOCK) else {
            return;
        };
        let resources = QueueResources {
            memory: Arc::clone(&self.memory),
            features: self.features,
            config: QueueConfig {
                size: QUEUE_SIZE.into(),
                desc: GuestAddress(base),
                avail: GuestAddress(base + 0x1000),
                used: GuestAddress(base + 0x2000),
                features: vring::Features::from_bits_truncate(self.features),
            },
            kick: Arc::new(kick),
            interrupt: Arc::new(Silent),
            in_flight: None,
        };
        let Some(state) = self.states.get_mut(usize::from(queue)) else {
            return;
        };
        let device: &dyn VirtioDevice<Memory> = &self.device;
        if device.start_queue(queue, resources, state.take()).is_ok() {
            *state = device.stop_queue(queue);
            assert!(state.is_some(), "the worker is dead");
        }
    }

    /// Makes a descriptor, and a chain available that begins with it (in a split ring).
    fn offer(&mut self, queue: u16, [head, next, flags, addr, len_low, len_high]: [u8; 6]) {
        let base = u64::from(queue) * QUEUE_MEMORY;
        let head = u64::from(head) % 32;
        let mut descriptor = (BUFFERS + u64::from(addr) * 0x70).to_le_bytes().to_vec();
        descriptor.extend([len_low, len_high, 0, 0, flags % 8, 0, next % 32, 0]);
        let _ = self
            .memory
            .write_slice(&descriptor, GuestAddress(base + 16 * head));
        if let Some(avail) = self.avail.get_mut(usize::from(queue)) {
            let slot = base + 0x1000 + 4 + 2 * u64::from(*avail % QUEUE_SIZE);
            let _ = self.memory.write_obj(head as u16, GuestAddress(slot));
            *avail = avail.wrapping_add(1);
            let _ = self.memory.write_obj(*avail, GuestAddress(base + 0x1002));
        }
    }

    fn reset(&mut self, features: u64) {
        let device: &dyn VirtioDevice<Memory> = &self.device;
        device.reset();
        self.states = Default::default();
        self.avail = Default::default();
        for queue in 0..u64::from(QUEUES) {
            let zero = [0; 0x3000];
            let _ = self
                .memory
                .write_slice(&zero, GuestAddress(queue * QUEUE_MEMORY));
        }
        let chosen = RING_FEATURES
            .iter()
            .zip(0..)
            .filter(|(_, bit)| features >> 61 >> bit & 1 != 0);
        let ring = chosen.fold(VERSION_1, |all, (feature, _)| all | feature);
        let offered = features & device.features();
        self.features = ring | if device.accepts(offered) { offered } else { 0 };
    }

    /// One step, chosen and filled by 16 bytes.
    fn step(&mut self, step: [u8; 16]) {
        let [choice, queue, a, b, c, d, e, f, value @ ..] = step;
        let queue = u16::from(queue) % QUEUES;
        match choice % 6 {
            0 => {
                let address = u64::from(u16::from_le_bytes([a, b]));
                let _ = self.memory.write_slice(&value, GuestAddress(address));
            }
            1 | 2 => self.offer(queue, [a, b, c, d, e, f]),
            3 => self.serve(queue),
            4 => {
                let length = usize::from(u16::from_le_bytes([a, b]));
                let mut frame = value.to_vec();
                frame.resize(length, value[0]);
                self.port().map(|port| port.inject(frame));
            }
            _ => self.reset(u64::from_le_bytes(value)),
        }
        while let Some(frame) = self.port().and_then(MemoryPort::sent) {
            assert!((HEADER + ETHERNET_HEADER..=HEADER + MAX_FRAME).contains(&frame.len()));
        }
    }
}

/// Takes `data` as steps of 16 bytes. Nothing may panic, the worker survives, what the driver set up restores to itself, and after
/// a reset the device sends a frame.
pub fn net(data: &[u8]) {
    let Ok(mut guest) = Guest::new() else {
        return;
    };
    for step in data.as_chunks().0.iter().take(1000) {
        guest.step(*step);
    }
    let state = guest.device.save();
    assert!(guest.device.restore(state.clone()).is_ok());
    assert_eq!(guest.device.save(), state);
    guest.reset(0);
    guest.offer(1, [0, 0, 0, 0, 60, 0]);
    guest.serve(1);
    assert!(
        guest
            .port()
            .and_then(MemoryPort::sent)
            .is_some_and(|frame| frame.len() == 60)
    );
}
