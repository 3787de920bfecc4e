//! A machine with a unit before its one device.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use iommu_emul::dma::DmaView;
use iommu_emul::mapping::{
    AlwaysResident, Invalidator, IovaAllocator, Mapper, PAGE_SIZE, PageRange, QueuedInvalidation,
    SecondStageTables, Strategy,
};
use iommu_emul::sidecore::{PageControl, PolledUnit};
use iommu_emul::spec::register::offset;
use iommu_emul::vtd::{Config, Unit};
use pio_mmio_bus::bus::BusDevice;
use pio_mmio_bus::interrupt::{InterruptError, MsiMessage, MsiSink};
use pio_mmio_bus::pci::RequesterId;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub type Memory = Arc<GuestMemoryMmap>;

const ROOT: u64 = 0x1000;
const CONTEXTS: u64 = 0x2000;
const QUEUE: u64 = 0x3000;
const STATUS: u64 = 0x4000;
const TABLES: PageRange = PageRange {
    address: 0x10_0000,
    pages: 512,
};
const BUFFERS: u64 = 0x100_0000;
/// Pages that the driver maps, in turn.
const BUFFER_COUNT: u64 = 128;
const DEVICE: RequesterId = RequesterId(8);
const DOMAIN: u16 = 5;

/// How the driver's register writes reach the unit.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Arm {
    /// The driver's thread carries them out, and spins as long as an exit would take it.
    Call { exit: Duration },
    /// Another thread polls for them.
    Sidecore,
}

impl Arm {
    /// Without exits.
    pub const BARE: Self = Self::Call {
        exit: Duration::ZERO,
    };
}

/// Counts the writes that exit where they are trapped.
pub type Exits = Rc<Cell<u64>>;

pub struct Machine {
    pub memory: Memory,
    unit: Arc<Unit<Memory>>,
    /// The first register page where a sidecore polls it.
    page: Memory,
}

struct Sink;

impl MsiSink for Sink {
    fn send(&self, _message: MsiMessage) -> Result<(), InterruptError> {
        Ok(())
    }
}

struct NeverTrapped;

impl PageControl for NeverTrapped {
    fn set_trapped(&self, _trapped: bool) {}
}

impl Machine {
    /// A machine whose unit has its root table and invalidation queue, and translates or not.
    pub fn new(translate: bool) -> Self {
        let memory: Memory =
            Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap());
        let capabilities = Config::default().on_second_page().capabilities().unwrap();
        let unit = Unit::new(capabilities, Arc::clone(&memory), Arc::new(Sink));
        let context = CONTEXTS + 16 * u64::from(DEVICE.0);
        for (at, word) in [
            (ROOT, CONTEXTS | 1),
            (context, TABLES.address | 1),
            (context + 8, u64::from(DOMAIN) << 8 | 2),
        ] {
            memory.write_obj(word, GuestAddress(at)).unwrap();
        }
        let write = |at: u16, value: u64| unit.write(at.into(), &value.to_le_bytes()).unwrap();
        let command = |value: u32| {
            let at = u64::from(offset::GCMD);
            unit.write(at, &value.to_le_bytes()).unwrap();
        };
        write(offset::IQA, QUEUE);
        command(1 << 26);
        write(offset::RTADDR, ROOT);
        command(1 << 26 | 1 << 30);
        if translate {
            command(1 << 26 | 1 << 31);
        }
        let page = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap());
        Self { memory, unit, page }
    }

    /// What the device sees.
    pub fn view(&self) -> DmaView<Memory> {
        self.unit.view(DEVICE)
    }

    /// What a sidecore polls, in that arm.
    pub fn polled(&self, arm: Arm) -> Option<PolledUnit<Memory, Memory>> {
        (arm == Arm::Sidecore).then(|| {
            let (unit, page) = (Arc::clone(&self.unit), Arc::clone(&self.page));
            PolledUnit::new(unit, page, GuestAddress(0), Box::new(NeverTrapped))
        })
    }

    /// The driver's side of the unit: page tables and the invalidation queue.
    pub fn mapper(
        &self,
        arm: Arm,
        strategy: Strategy,
        exits: &Exits,
    ) -> Mapper<SecondStageTables<Memory, impl Invalidator + use<>>, AlwaysResident> {
        let memory = Arc::clone(&self.memory);
        let tail = self.write_tail(arm, Rc::clone(exits));
        let queue = QueuedInvalidation::new(memory, QUEUE, STATUS, DOMAIN, tail);
        self.mapper_with(queue, strategy)
    }

    pub fn mapper_with<I: Invalidator>(
        &self,
        invalidator: I,
        strategy: Strategy,
    ) -> Mapper<SecondStageTables<Memory, I>, AlwaysResident> {
        let tables = SecondStageTables::new(Arc::clone(&self.memory), invalidator, 4, TABLES);
        let iovas = IovaAllocator::new(0, 1 << 30);
        Mapper::new(tables, AlwaysResident, iovas, strategy)
    }

    /// The driver's way to move the queue's tail.
    fn write_tail(&self, arm: Arm, exits: Exits) -> impl Fn(u64) + use<> {
        let (unit, page) = (Arc::clone(&self.unit), Arc::clone(&self.page));
        move |tail: u64| match arm {
            Arm::Call { exit } => {
                exits.set(exits.get() + 1);
                unit.write(offset::IQT.into(), &tail.to_le_bytes()).unwrap();
                if !exit.is_zero() {
                    spin(exit);
                }
            }
            Arm::Sidecore => {
                let at = GuestAddress(offset::IQT.into());
                page.store(tail, at, Ordering::Release).unwrap();
            }
        }
    }
}

fn spin(time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {}
}

/// The page that the driver uses for the `n`th time.
pub fn buffer(n: u64) -> PageRange {
    PageRange {
        address: BUFFERS + n % BUFFER_COUNT * PAGE_SIZE,
        pages: 1,
    }
}
