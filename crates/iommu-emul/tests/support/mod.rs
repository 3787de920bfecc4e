//! A guest to test a unit with: memory, tables and register accesses as a driver makes them.

#![expect(
    dead_code,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    reason = "test support: each test uses a part of it"
)]

use std::sync::{Arc, Mutex};

use iommu_emul::{
    spec::register::{Global, offset},
    vtd::{Access, Config, DmaView, Unit},
};
use pio_mmio_bus::{
    bus::BusDevice,
    interrupt::{InterruptError, MsiMessage, MsiSink},
    pci::RequesterId,
};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};

pub type Memory = Arc<GuestMemoryMmap>;

/// Memory is from 0 to here.
pub const MEMORY: u64 = 32 << 20;
/// The requester of most tests: 01:02.3.
pub const DEVICE: RequesterId = RequesterId(0x0113);

// Where the guest keeps its structures.
pub const ROOT: u64 = 0x1000;
pub const CONTEXTS: u64 = 0x2000;
pub const CONTEXTS_UPPER: u64 = 0x3000;
pub const PASID_DIRECTORY: u64 = 0x4000;
pub const PASID_TABLE: u64 = 0x5000;
pub const QUEUE: u64 = 0x8000;
pub const STATUS: u64 = 0x9000;
pub const IRT: u64 = 0xa000;
pub const SECOND: u64 = 0x10_0000;
pub const FIRST: u64 = 0x20_0000;

/// Messages that came out.
#[derive(Debug, Default)]
pub struct Sink(pub Mutex<Vec<MsiMessage>>);

impl MsiSink for Sink {
    fn send(&self, message: MsiMessage) -> Result<(), InterruptError> {
        self.0.lock().unwrap().push(message);
        Ok(())
    }
}

pub struct Guest {
    pub memory: Memory,
    pub sink: Arc<Sink>,
    pub unit: Arc<Unit<Memory>>,
    /// The next free page for tables.
    pub next: Mutex<u64>,
    pub tail: Mutex<u64>,
}

pub fn memory() -> Memory {
    let ranges = [(GuestAddress(0), usize::try_from(MEMORY).unwrap())];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
}

impl Guest {
    pub fn new(config: Config) -> Self {
        let memory = memory();
        let sink = Arc::new(Sink::default());
        let capabilities = config.capabilities().unwrap();
        let unit = Unit::new(capabilities, Arc::clone(&memory), sink.clone());
        Self {
            memory,
            sink,
            unit,
            next: Mutex::new(0x100_0000),
            tail: Mutex::new(0),
        }
    }

    pub fn read32(&self, at: u16) -> u32 {
        let mut bytes = [0; 4];
        self.unit.read(at.into(), &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    pub fn read64(&self, at: u16) -> u64 {
        let mut bytes = [0; 8];
        self.unit.read(at.into(), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    pub fn write32(&self, at: u16, value: u32) {
        self.unit.write(at.into(), &value.to_le_bytes()).unwrap();
    }

    pub fn write64(&self, at: u16, value: u64) {
        self.unit.write(at.into(), &value.to_le_bytes()).unwrap();
    }

    pub fn store(&self, at: u64, word: u64) {
        self.memory.write_obj(word, GuestAddress(at)).unwrap();
    }

    pub fn load(&self, at: u64) -> u64 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    pub fn page(&self) -> u64 {
        let mut next = self.next.lock().unwrap();
        *next += 0x1000;
        *next - 0x1000
    }

    /// Gives the commands in `set` besides what is on.
    pub fn command(&self, set: Global) {
        let status = Global::from_bits_retain(self.read32(offset::GSTS));
        let one_shot = Global::ROOT_TABLE_POINTER | Global::INTERRUPT_TABLE_POINTER;
        self.write32(offset::GCMD, ((status - one_shot) | set).bits());
    }

    /// Sets the root table and the queue and switches translation on; `mode` is RTADDR's.
    pub fn start(&self, mode: u64) {
        self.write64(offset::RTADDR, ROOT | mode << 10);
        self.command(Global::ROOT_TABLE_POINTER);
        self.write64(offset::IQA, QUEUE);
        self.command(Global::QUEUED_INVALIDATION);
        self.command(Global::TRANSLATION);
    }

    /// A legacy-mode context entry for [`DEVICE`].
    pub fn context(&self, low: u64, high: u64) {
        self.store(ROOT + 16, CONTEXTS | 1);
        self.store(CONTEXTS + 16 * 0x13, low);
        self.store(CONTEXTS + 16 * 0x13 + 8, high);
    }

    /// Scalable-mode tables for [`DEVICE`] with `entry` as its RID_PASID's (0), or that of `pasid`.
    pub fn pasid_entry(&self, pasid: u64, entry: [u64; 3]) {
        self.store(ROOT + 16, CONTEXTS | 1);
        self.store(ROOT + 24, CONTEXTS_UPPER | 1);
        self.store(CONTEXTS + 32 * 0x13, PASID_DIRECTORY | 8 | 1);
        self.store(PASID_DIRECTORY, PASID_TABLE | 1);
        for (word, i) in entry.into_iter().zip(0..) {
            self.store(PASID_TABLE + 64 * pasid + 8 * i, word);
        }
    }

    /// Maps `input` to `output` in the table at `root` with `levels`, the entry at `leaf_level`; `flags` go into every entry on
    /// the way and `leaf_flags` into the last.
    pub fn map(&self, root: u64, levels: u8, input: u64, leaf: (u8, u64), flags: u64) {
        let (leaf_level, word) = leaf;
        let mut table = root;
        for level in (leaf_level..=levels).rev() {
            let place = table + 8 * ((input >> (12 + 9 * (level - 1))) & 0x1ff);
            if level == leaf_level {
                self.store(place, word);
            } else {
                if self.load(place) & 3 == 0 {
                    self.store(place, self.page() | flags);
                }
                table = self.load(place) & 0x000f_ffff_ffff_f000;
            }
        }
    }

    /// Maps a 4 KiB page for reads and writes in the second-stage table of 4 levels.
    pub fn map_page(&self, input: u64, output: u64) {
        self.map(SECOND, 4, input, (1, output | 3), 3);
    }

    /// Adds descriptors to the queue (of 4 KiB) and moves its tail.
    pub fn submit(&self, descriptors: &[[u64; 2]]) {
        let mut tail = self.tail.lock().unwrap();
        for [low, high] in descriptors {
            self.store(QUEUE + *tail, *low);
            self.store(QUEUE + *tail + 8, *high);
            *tail = (*tail + 16) % 4096;
        }
        self.write64(offset::IQT, *tail);
    }

    /// Submits `descriptors` and a wait that writes `status` to [`STATUS`].
    pub fn submit_and_wait(&self, descriptors: &[[u64; 2]], status: u32) {
        let mut all = descriptors.to_vec();
        all.push(wait(status));
        self.submit(&all);
    }

    pub fn status(&self) -> u32 {
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    pub fn view(&self) -> DmaView<Memory> {
        self.unit.view(DEVICE)
    }

    /// Where an access ends, or `None` if it is blocked.
    pub fn translate(&self, view: &DmaView<Memory>, address: u64, access: Access) -> Option<u64> {
        let (address, _) = view.memory().translate(GuestAddress(address), access)?;
        Some(address.0)
    }

    /// The fault that the first record holds (reason, source, address), cleared with the status.
    pub fn take_fault(&self) -> Option<(u8, u16, u64)> {
        let at = self.unit.capabilities().config().fault_record_offset;
        let (low, high) = (self.read64(at), self.read64(at + 8));
        if high >> 63 == 0 {
            return None;
        }
        self.write32(at + 12, 1 << 31);
        Some(((high >> 32) as u8, high as u16, low))
    }

    pub fn messages(&self) -> Vec<MsiMessage> {
        std::mem::take(&mut self.sink.0.lock().unwrap())
    }
}

/// A legacy-mode second-stage context entry of 4 levels in domain 5.
pub const CONTEXT: (u64, u64) = (SECOND | 1, 5 << 8 | 2);

/// A guest in legacy mode with translation on and [`DEVICE`] in domain 5.
pub fn legacy() -> Guest {
    let guest = Guest::new(Config::default());
    guest.context(CONTEXT.0, CONTEXT.1);
    guest.start(0);
    guest
}

pub fn wait(status: u32) -> [u64; 2] {
    [u64::from(status) << 32 | 1 << 5 | 5, STATUS]
}

pub const fn iotlb_global() -> [u64; 2] {
    [1 << 4 | 2, 0]
}

pub const fn iotlb_domain(domain: u64) -> [u64; 2] {
    [domain << 16 | 2 << 4 | 2, 0]
}

pub const fn iotlb_pages(domain: u64, address: u64, order: u64) -> [u64; 2] {
    [domain << 16 | 3 << 4 | 2, address | order]
}
