//! A driver small enough to be trusted: it lays out descriptors by hand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pio_mmio_bus::bus::BusDevice;
use virtio_devices::transport::spec::mmio;
use vm_memory::{Bytes, GuestAddress, GuestMemory};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;

/// Where queue `i` lies: a page each for descriptors, avail and used.
const QUEUES: u64 = 0x1000;

pub struct Driver<T, M = super::Memory> {
    pub transport: T,
    pub memory: M,
    pub size: u16,
    available: Vec<u16>,
    seen: Vec<u16>,
}

impl<T: BusDevice, G: GuestMemory> Driver<T, Arc<G>> {
    /// Brings the device up with `queues` queues of `size`, accepting `features` besides VERSION_1.
    pub fn start(transport: T, memory: Arc<G>, queues: u16, size: u16, features: u64) -> Self {
        let mut driver = Self {
            transport,
            memory,
            size,
            available: Vec::new(),
            seen: Vec::new(),
        };
        driver.bring_up(queues, features);
        driver
    }

    pub fn bring_up(&mut self, queues: u16, features: u64) {
        self.write(mmio::STATUS, 0);
        self.available = vec![0; queues.into()];
        self.seen = vec![0; queues.into()];
        self.write(mmio::STATUS, 1);
        self.write(mmio::STATUS, 3);
        let features = features | 1 << 32;
        for word in 0..2 {
            self.write(mmio::DRIVER_FEATURES_SEL, word);
            self.write(mmio::DRIVER_FEATURES, (features >> (32 * word)) as u32);
        }
        self.write(mmio::STATUS, 11);
        assert_eq!(self.read(mmio::STATUS), 11);
        for queue in 0..queues {
            let base = u32::try_from(Self::base(queue)).unwrap();
            let zeros = [0; 0x3000];
            self.memory
                .write_slice(&zeros, GuestAddress(base.into()))
                .unwrap();
            self.write(mmio::QUEUE_SEL, queue.into());
            self.write(mmio::QUEUE_SIZE, self.size.into());
            self.write(mmio::QUEUE_DESC_LOW, base);
            self.write(mmio::QUEUE_DRIVER_LOW, base + 0x1000);
            self.write(mmio::QUEUE_DEVICE_LOW, base + 0x2000);
            self.write(mmio::QUEUE_READY, 1);
        }
        self.write(mmio::STATUS, 15);
    }

    fn base(queue: u16) -> u64 {
        QUEUES + 0x3000 * u64::from(queue)
    }

    pub fn write(&self, register: u64, value: u32) {
        self.transport
            .write(register, &value.to_le_bytes())
            .unwrap();
    }

    pub fn read(&self, register: u64) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register, &mut data).unwrap();
        u32::from_le_bytes(data)
    }

    /// Writes descriptor `index`.
    pub fn descriptor(
        &self,
        queue: u16,
        index: u16,
        (addr, len, flags, next): (u64, u32, u16, u16),
    ) {
        let at = Self::base(queue) + 16 * u64::from(index);
        self.memory.write_obj(addr, GuestAddress(at)).unwrap();
        self.memory.write_obj(len, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next, GuestAddress(at + 14)).unwrap();
    }

    /// Lays out a chain from descriptor `head` on, and makes it available without a kick.
    pub fn offer(&mut self, queue: u16, head: u16, buffers: &[(u64, u32, u16)]) {
        for (step, (addr, len, flags)) in (0u16..).zip(buffers) {
            let last = usize::from(step) + 1 == buffers.len();
            let flags = flags | if last { 0 } else { NEXT };
            let next = if last { 0 } else { head + step + 1 };
            self.descriptor(queue, head + step, (*addr, *len, flags, next));
        }
        self.make_available(queue, head);
    }

    pub fn make_available(&mut self, queue: u16, head: u16) {
        let avail = Self::base(queue) + 0x1000;
        let index = &mut self.available[usize::from(queue)];
        let slot = avail + 4 + 2 * u64::from(*index % self.size);
        self.memory.write_obj(head, GuestAddress(slot)).unwrap();
        *index = index.wrapping_add(1);
        self.memory
            .store(
                *index,
                GuestAddress(avail + 2),
                std::sync::atomic::Ordering::Release,
            )
            .unwrap();
    }

    /// Sets the flags of the available ring: 1 asks for no interrupts.
    pub fn set_avail_flags(&self, queue: u16, flags: u16) {
        let at = Self::base(queue) + 0x1000;
        self.memory.write_obj(flags, GuestAddress(at)).unwrap();
    }

    pub fn kick(&self, queue: u16) {
        self.write(mmio::QUEUE_NOTIFY, queue.into());
    }

    /// The next used element, if there is one: head and length.
    pub fn used(&mut self, queue: u16) -> Option<(u16, u32)> {
        let used = Self::base(queue) + 0x2000;
        let index: u16 = self
            .memory
            .load(GuestAddress(used + 2), std::sync::atomic::Ordering::Acquire)
            .unwrap();
        let seen = &mut self.seen[usize::from(queue)];
        if *seen == index {
            return None;
        }
        let slot = used + 4 + 8 * u64::from(*seen % self.size);
        *seen = seen.wrapping_add(1);
        let id: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
        let len = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
        Some((u16::try_from(id).unwrap(), len))
    }

    /// Waits for a used element.
    pub fn wait_used(&mut self, queue: u16) -> (u16, u32) {
        self.wait("a used buffer", |driver| driver.used(queue))
    }

    /// Waits until the device status has these bits.
    pub fn wait_status(&mut self, bits: u32) {
        self.wait("a status", |driver| {
            (driver.read(mmio::STATUS) & bits == bits).then_some(())
        });
    }

    /// Waits for something that has to come: the bound only keeps a broken device from hanging the tests.
    pub fn wait<R>(&mut self, what: &str, mut f: impl FnMut(&mut Self) -> Option<R>) -> R {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(result) = f(self) {
                return result;
            }
            assert!(Instant::now() < end, "no {what}");
            std::thread::yield_now();
        }
    }

    /// Offers a chain and waits for it to be used; returns the used length.
    pub fn run(&mut self, queue: u16, buffers: &[(u64, u32, u16)]) -> u32 {
        self.offer(queue, 0, buffers);
        self.kick(queue);
        self.wait_used(queue).1
    }

    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }
}
