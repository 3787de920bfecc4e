//! A driver that speaks to a device's queues directly, with rings written by hand.
#![allow(dead_code, reason = "each test uses its part")]
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use virtio_devices::{DeviceEvents, QueueInterrupt, QueueResources, VirtioDevice};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vring::{DriverQueue, Features, QueueConfig, QueueState};

pub type Memory = Arc<GuestMemoryMmap>;

/// Every ring has as much memory: its areas first, then buffers.
const RING_MEMORY: u64 = 0x40_0000;
const BUFFERS: u64 = 0x1_0000;
/// `VIRTIO_F_EVENT_IDX`.
pub const EVENT_IDX: u64 = 1 << 29;
const DESC_F_NEXT: u16 = 1;
const DESC_F_WRITE: u16 = 2;

/// Longer than anything takes; a test that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

pub fn memory(rings: usize) -> Memory {
    Arc::new(
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), rings * RING_MEMORY as usize)]).unwrap(),
    )
}

/// Counts what a device reports.
#[derive(Default)]
pub struct Reports {
    counts: Mutex<(u32, u32)>,
    changed: Condvar,
}

impl Reports {
    fn wait(&self, enough: impl Fn(&(u32, u32)) -> bool) {
        let counts = self.counts.lock().unwrap();
        let waited = self
            .changed
            .wait_timeout_while(counts, PATIENCE, |counts| !enough(counts));
        assert!(
            !waited.unwrap().1.timed_out(),
            "the device reported nothing"
        );
    }

    pub fn wait_needs_reset(&self) {
        self.wait(|counts| counts.0 > 0);
    }

    pub fn wait_config_changed(&self) {
        self.wait(|counts| counts.1 > 0);
    }

    pub fn needs_reset(&self) -> bool {
        self.counts.lock().unwrap().0 > 0
    }
}

impl DeviceEvents for Reports {
    fn config_changed(&self) {
        self.counts.lock().unwrap().1 += 1;
        self.changed.notify_all();
    }

    fn needs_reset(&self) {
        self.counts.lock().unwrap().0 += 1;
        self.changed.notify_all();
    }
}

#[derive(Default)]
struct Interrupt {
    raised: Mutex<u64>,
    changed: Condvar,
}

impl QueueInterrupt for Interrupt {
    fn trigger(&self) {
        *self.raised.lock().unwrap() += 1;
        self.changed.notify_all();
    }
}

/// A part of a chain.
#[derive(Clone, Debug)]
pub enum Part {
    /// The device reads these bytes.
    Read(Vec<u8>),
    /// The device writes this many bytes.
    Write(usize),
    /// A raw descriptor: address, length, whether the device writes.
    Raw(u64, u32, bool),
}

/// A used chain.
#[derive(Debug, PartialEq, Eq)]
pub struct Used {
    pub head: u16,
    /// What the device said it wrote.
    pub written: u32,
    /// The first `written` bytes of the writable parts.
    pub bytes: Vec<u8>,
}

/// Index of a descriptor, and where the device may write.
type Descriptor = (u16, Option<(u64, u32)>);

/// The driver's side of one split ring.
pub struct Ring {
    memory: Memory,
    base: u64,
    size: u16,
    features: u64,
    kick: Arc<EventFd>,
    interrupt: Arc<Interrupt>,
    avail: u16,
    /// `avail` when kicking was last considered.
    kicked: u16,
    used: u16,
    free: VecDeque<u16>,
    /// For each head, its descriptors and where they may write.
    chains: Vec<Vec<Descriptor>>,
    next_buffer: u64,
}

impl Ring {
    /// The ring in the `place`th part of memory.
    pub fn new(memory: &Memory, place: u64, size: u16, features: u64) -> Self {
        let base = place * RING_MEMORY;
        memory
            .write_slice(&[0; BUFFERS as usize], GuestAddress(base))
            .unwrap();
        Self {
            memory: memory.clone(),
            base,
            size,
            features,
            kick: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            interrupt: Arc::default(),
            avail: 0,
            kicked: 0,
            used: 0,
            free: (0..size).collect(),
            chains: vec![Vec::new(); usize::from(size)],
            next_buffer: base + BUFFERS,
        }
    }

    fn avail_ring(&self) -> u64 {
        self.base + 0x4000
    }

    fn used_ring(&self) -> u64 {
        self.base + 0x6000
    }

    pub fn resources(&self) -> QueueResources<Memory> {
        QueueResources {
            memory: self.memory.clone(),
            features: self.features,
            config: QueueConfig {
                size: self.size.into(),
                desc: GuestAddress(self.base),
                avail: GuestAddress(self.avail_ring()),
                used: GuestAddress(self.used_ring()),
                features: Features::from_bits_truncate(self.features),
            },
            kick: self.kick.clone(),
            interrupt: self.interrupt.clone(),
            in_flight: None,
        }
    }

    pub fn start(&self, device: &dyn VirtioDevice<Memory>, index: u16, state: Option<QueueState>) {
        device.start_queue(index, self.resources(), state).unwrap();
    }

    /// Room for a buffer, used again when all is used up.
    fn buffer(&mut self, len: u64) -> u64 {
        if self.next_buffer + len > self.base + RING_MEMORY {
            self.next_buffer = self.base + BUFFERS;
        }
        let buffer = self.next_buffer;
        self.next_buffer += len;
        buffer
    }

    pub fn write_desc(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.memory
            .write_slice(&bytes, GuestAddress(self.base + 16 * u64::from(index)))
            .unwrap();
    }

    /// Whether a chain of this many parts fits.
    pub fn has_room(&self, parts: usize) -> bool {
        self.free.len() >= parts
    }

    /// Makes a chain available without a kick.
    pub fn offer(&mut self, parts: &[Part]) -> u16 {
        assert!(self.has_room(parts.len()));
        let indices: Vec<u16> = self.free.drain(..parts.len()).collect();
        let mut chain = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            let (addr, len, write) = match part {
                Part::Read(bytes) => {
                    let addr = self.buffer(bytes.len() as u64);
                    self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
                    (addr, bytes.len() as u32, false)
                }
                Part::Write(len) => (self.buffer(*len as u64), *len as u32, true),
                Part::Raw(addr, len, write) => (*addr, *len, *write),
            };
            let next = indices.get(i + 1).copied();
            let flags =
                if next.is_some() { DESC_F_NEXT } else { 0 } | if write { DESC_F_WRITE } else { 0 };
            self.write_desc(indices[i], addr, len, flags, next.unwrap_or(0));
            chain.push((indices[i], write.then_some((addr, len))));
        }
        self.chains[usize::from(indices[0])] = chain;
        self.offer_head(indices[0]);
        indices[0]
    }

    /// Puts a head into the available ring, whatever it is.
    pub fn offer_head(&mut self, head: u16) {
        let slot = u64::from(self.avail % self.size);
        let ring = self.avail_ring();
        self.memory
            .write_obj(head.to_le(), GuestAddress(ring + 4 + 2 * slot))
            .unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.set_avail_index(self.avail);
    }

    pub fn set_avail_index(&self, index: u16) {
        self.memory
            .store(
                index.to_le(),
                GuestAddress(self.avail_ring() + 2),
                Ordering::SeqCst,
            )
            .unwrap();
    }

    pub fn kick(&self) {
        self.kick.write(1).unwrap();
    }

    /// Makes a chain available and kicks if the device wants that.
    pub fn send(&mut self, parts: &[Part]) -> u16 {
        let head = self.offer(parts);
        fence(Ordering::SeqCst);
        let ring = self.used_ring();
        let wanted = if self.features & EVENT_IDX != 0 {
            let event = self.load(ring + 4 + 8 * u64::from(self.size));
            self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(self.kicked)
        } else {
            self.load(ring) & 1 == 0
        };
        self.kicked = self.avail;
        if wanted {
            self.kick();
        }
        head
    }

    fn load(&self, addr: u64) -> u16 {
        u16::from_le(
            self.memory
                .load(GuestAddress(addr), Ordering::SeqCst)
                .unwrap(),
        )
    }

    /// The next used chain, if there is one already.
    pub fn try_used(&mut self) -> Option<Used> {
        let ring = self.used_ring();
        if self.load(ring + 2) == self.used {
            return None;
        }
        let slot = u64::from(self.used % self.size);
        let head: u32 = self
            .memory
            .read_obj(GuestAddress(ring + 4 + 8 * slot))
            .unwrap();
        let written: u32 = self
            .memory
            .read_obj(GuestAddress(ring + 8 + 8 * slot))
            .unwrap();
        self.used = self.used.wrapping_add(1);
        let head = head as u16;
        let chain = std::mem::take(&mut self.chains[usize::from(head)]);
        let mut bytes = Vec::new();
        for (index, writable) in chain {
            self.free.push_back(index);
            if let Some((addr, len)) = writable {
                let len = (len as usize).min(written as usize - bytes.len());
                let start = bytes.len();
                bytes.resize(start + len, 0);
                self.memory
                    .read_slice(&mut bytes[start..], GuestAddress(addr))
                    .unwrap();
            }
        }
        assert_eq!(
            bytes.len(),
            written as usize,
            "used length above the buffers' length"
        );
        Some(Used {
            head,
            written,
            bytes,
        })
    }

    /// Waits for the next used chain.
    pub fn used(&mut self) -> Used {
        let interrupt = self.interrupt.clone();
        let mut raised = interrupt.raised.lock().unwrap();
        // With EVENT_IDX, interrupt at the next one.
        let event = self.avail_ring() + 4 + 2 * u64::from(self.size);
        self.memory
            .store(self.used.to_le(), GuestAddress(event), Ordering::SeqCst)
            .unwrap();
        fence(Ordering::SeqCst);
        loop {
            if let Some(used) = self.try_used() {
                return used;
            }
            let (again, timeout) = interrupt.changed.wait_timeout(raised, PATIENCE).unwrap();
            assert!(!timeout.timed_out(), "no interrupt");
            raised = again;
        }
    }

    /// A chain, from sending to its return.
    pub fn round_trip(&mut self, parts: &[Part]) -> Used {
        let head = self.send(parts);
        let used = self.used();
        assert_eq!(used.head, head);
        used
    }
}

struct Silent;

impl QueueInterrupt for Silent {
    fn trigger(&self) {}
}

/// Starts a queue whose driver is vring's own and looks at its ring without being interrupted. The areas begin at `base`, and have a
/// page each; buffers may be from 0x8000 on.
pub fn start_ring<T>(
    device: &dyn VirtioDevice<Memory>,
    memory: &Memory,
    (index, base): (u16, u64),
    size: u32,
    features: u64,
) -> (DriverQueue<Memory, T>, Arc<EventFd>) {
    let config = QueueConfig {
        size,
        desc: GuestAddress(base),
        avail: GuestAddress(base + 0x1000),
        used: GuestAddress(base + 0x2000),
        features: Features::from_bits_truncate(features),
    };
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
    let ring = DriverQueue::new(memory.clone(), &config).unwrap();
    let resources = QueueResources {
        memory: memory.clone(),
        features,
        config,
        kick: kick.clone(),
        interrupt: Arc::new(Silent),
        in_flight: None,
    };
    device.start_queue(index, resources, None).unwrap();
    (ring, kick)
}

/// All ways to cut `bytes` into one, two or three descriptors' worth, and into single bytes; one way has an empty descriptor.
pub fn framings(bytes: &[u8]) -> Vec<Vec<Part>> {
    let mut all = vec![
        vec![Part::Read(bytes.to_vec())],
        bytes.iter().map(|byte| Part::Read(vec![*byte])).collect(),
    ];
    for cut in 0..=bytes.len() {
        let (first, rest) = bytes.split_at(cut);
        all.push(vec![Part::Read(first.to_vec()), Part::Read(rest.to_vec())]);
        all.push(vec![
            Part::Read(first.to_vec()),
            Part::Read(vec![]),
            Part::Read(rest.to_vec()),
        ]);
    }
    all
}

/// Waits until `done`, which something else brings about soon.
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
