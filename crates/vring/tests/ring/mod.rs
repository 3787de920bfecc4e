//! A split ring in guest memory, written as a driver that breaks every rule could.
#![allow(dead_code, reason = "each test uses a part")]

use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vring::StartError;
use vring::{Features, Queue, QueueConfig, QueueState, View};

pub type Memory = Arc<GuestMemoryMmap<()>>;

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x3000;
const USED: u64 = 0x4000;

/// A descriptor as the ring holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Desc {
    pub const NEXT: u16 = 1;
    pub const WRITE: u16 = 2;
    pub const INDIRECT: u16 = 4;

    pub fn read(addr: u64, len: u32) -> Self {
        Self {
            addr,
            len,
            flags: 0,
            next: 0,
        }
    }

    pub fn write(addr: u64, len: u32) -> Self {
        Self {
            addr,
            len,
            flags: Self::WRITE,
            next: 0,
        }
    }

    pub fn table(addr: u64, entries: u32) -> Self {
        Self {
            addr,
            len: 16 * entries,
            flags: Self::INDIRECT,
            next: 0,
        }
    }
}

pub struct SplitRing {
    pub memory: Memory,
    pub config: QueueConfig,
}

impl SplitRing {
    pub fn new(size: u16, features: Features) -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20000)]).unwrap();
        Self {
            memory: Arc::new(memory),
            config: QueueConfig {
                size: size.into(),
                desc: GuestAddress(DESC),
                avail: GuestAddress(AVAIL),
                used: GuestAddress(USED),
                features,
            },
        }
    }

    pub fn queue(&self) -> Queue<Memory> {
        Queue::new(self.memory.clone(), &self.config, None).unwrap()
    }

    pub fn restore(&self, state: &QueueState) -> Result<Queue<Memory>, StartError> {
        Queue::new(self.memory.clone(), &self.config, Some(state))
    }

    pub fn view(&self) -> View<Memory> {
        View::new(&self.memory)
    }

    pub fn write(&self, addr: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(addr)).unwrap();
    }

    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(addr))
            .unwrap();
        bytes
    }

    pub fn write_desc_at(&self, table: u64, index: u16, desc: Desc) {
        let at = table + 16 * u64::from(index);
        self.write(at, &desc.addr.to_le_bytes());
        self.write(at + 8, &desc.len.to_le_bytes());
        self.write(at + 12, &desc.flags.to_le_bytes());
        self.write(at + 14, &desc.next.to_le_bytes());
    }

    pub fn write_desc(&self, index: u16, desc: Desc) {
        self.write_desc_at(DESC, index, desc);
    }

    /// Links the descriptors and puts them at these indices of a table.
    pub fn write_table(&self, table: u64, indices: &[u16], descs: &[Desc]) {
        assert_eq!(indices.len(), descs.len());
        for (i, desc) in descs.iter().enumerate() {
            let mut desc = *desc;
            if let Some(next) = indices.get(i + 1) {
                desc.flags |= Desc::NEXT;
                desc.next = *next;
            }
            self.write_desc_at(table, indices[i], desc);
        }
    }

    pub fn write_chain(&self, indices: &[u16], descs: &[Desc]) {
        self.write_table(DESC, indices, descs);
    }

    fn size(&self) -> u64 {
        u64::from(self.config.size)
    }

    fn word(&self, addr: u64) -> u16 {
        u16::from_le(self.memory.read_obj(GuestAddress(addr)).unwrap())
    }

    pub fn avail_idx(&self) -> u16 {
        self.word(AVAIL + 2)
    }

    pub fn set_avail_idx(&self, index: u16) {
        self.write(AVAIL + 2, &index.to_le_bytes());
    }

    pub fn set_avail_flags(&self, flags: u16) {
        self.write(AVAIL, &flags.to_le_bytes());
    }

    pub fn used_flags(&self) -> u16 {
        self.word(USED)
    }

    pub fn set_used_event(&self, event: u16) {
        self.write(AVAIL + 4 + 2 * self.size(), &event.to_le_bytes());
    }

    pub fn avail_event(&self) -> u16 {
        self.word(USED + 4 + 8 * self.size())
    }

    /// Makes a head available.
    pub fn offer(&self, head: u16) {
        let index = self.avail_idx();
        self.write(
            AVAIL + 4 + 2 * (u64::from(index) % self.size()),
            &head.to_le_bytes(),
        );
        self.set_avail_idx(index.wrapping_add(1));
    }

    pub fn used_idx(&self) -> u16 {
        self.word(USED + 2)
    }

    /// The used entries since the start; meant for fewer than the queue's size.
    pub fn used(&self) -> Vec<(u32, u32)> {
        (0..u64::from(self.used_idx()))
            .map(|i| {
                let at = USED + 4 + 8 * (i % self.size());
                let entry: u64 = self.memory.read_obj(GuestAddress(at)).unwrap();
                ((entry & 0xffff_ffff) as u32, (entry >> 32) as u32)
            })
            .collect()
    }
}
