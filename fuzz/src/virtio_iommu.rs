//! A guest that does anything to a virtio-iommu: requests, rings, registers and snapshots, while devices behind it do DMA.

use std::sync::Arc;

use iommu_emul::dma::{Access, DmaGuard, DmaView};
use iommu_emul::domain::{DomainConfig, Domains};
use pio_mmio_bus::bus::{AddressSpace, Bus, BusReader};
use pio_mmio_bus::interrupt::RecordingLine;
use pio_mmio_bus::pci::RequesterId;
use virtio_devices::Worker;
use virtio_devices::iommu::Iommu;
use virtio_devices::transport::MmioTransport;
use virtio_devices::transport::spec::mmio;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};

use crate::input::Input;

type Memory = Arc<GuestMemoryMmap>;

/// Where the guest has the registers.
const BASE: u64 = 0xd000_0000;
/// Bytes of guest memory: little, so that guesses meet.
const MEMORY: usize = 0x8000;
/// Where the rings, the requests and the room for answers are.
const RINGS: u64 = 0x1000;
const REQUEST: u64 = 0x4000;
const ANSWER: u64 = 0x5000;
const RING_SIZE: u16 = 8;
/// Devices behind the IOMMU.
const ENDPOINTS: u16 = 3;
/// What a held guard waits for at most.
const GUARDS: usize = 4;

struct Machine {
    memory: Memory,
    mmio: BusReader,
    transport: Arc<MmioTransport<Memory>>,
    domains: Arc<Domains<Memory>>,
    views: Vec<DmaView<Memory>>,
    guards: Vec<DmaGuard<Memory>>,
    available: [u16; 2],
}

impl Machine {
    fn new() -> Result<Self, Box<dyn std::error::Error>> {
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)])?);
        let config = DomainConfig {
            max_mappings: 16,
            reserved: vec![0x3000..=0x3fff],
            ..DomainConfig::default()
        };
        let domains = Domains::new(config, Arc::clone(&memory));
        let views = (0..ENDPOINTS)
            .map(|id| domains.view(RequesterId(id)))
            .collect();
        let device = Iommu::new(Arc::clone(&domains), Worker::spawn("iommu")?);
        let line = Arc::new(RecordingLine::default());
        let transport =
            MmioTransport::new(Arc::new(device), Arc::clone(&memory), line).map(Arc::new)?;
        let bus = Bus::new(AddressSpace::Mmio)?;
        transport.place(&bus, BASE, "iommu")?;
        let mut machine = Self {
            memory,
            mmio: bus.reader(),
            transport,
            domains,
            views,
            guards: Vec::new(),
            available: [0; 2],
        };
        machine.start();
        Ok(machine)
    }

    fn write(&mut self, register: u64, value: u32) {
        drop(self.mmio.write(BASE + register, &value.to_le_bytes()));
    }

    /// Brings the device up as a driver does.
    fn start(&mut self) {
        self.store(RINGS, &[0; 0x1000]);
        self.available = [0; 2];
        for status in [0, 1, 3] {
            self.write(mmio::STATUS, status);
        }
        for (word, features) in [(0, 0x77), (1, 1)] {
            self.write(mmio::DRIVER_FEATURES_SEL, word);
            self.write(mmio::DRIVER_FEATURES, features);
        }
        self.write(mmio::STATUS, 11);
        for (queue, base) in [(0, 0x1000), (1, 0x1800)] {
            self.write(mmio::QUEUE_SEL, queue);
            self.write(mmio::QUEUE_SIZE, RING_SIZE.into());
            self.write(mmio::QUEUE_DESC_LOW, base);
            self.write(mmio::QUEUE_DRIVER_LOW, base + 0x200);
            self.write(mmio::QUEUE_DEVICE_LOW, base + 0x400);
            self.write(mmio::QUEUE_READY, 1);
        }
        self.write(mmio::STATUS, 15);
    }

    fn store(&self, at: u64, bytes: &[u8]) {
        // Beyond the end there is nothing to store to.
        let _ = self.memory.write_slice(bytes, GuestAddress(at));
    }

    /// Offers a buffer of `readable` bytes of request and `writable` bytes of answer.
    fn offer(&mut self, queue: u16, readable: u32, writable: u32) {
        let base = RINGS + 0x800 * u64::from(queue);
        let mut descriptors = Vec::new();
        for (address, length, flags) in [(REQUEST, readable, 1_u16), (ANSWER, writable, 2)] {
            descriptors.extend(address.to_le_bytes());
            descriptors.extend(length.to_le_bytes());
            descriptors.extend(flags.to_le_bytes());
            descriptors.extend(1_u16.to_le_bytes());
        }
        self.store(base, &descriptors);
        if let Some(index) = self.available.get_mut(usize::from(queue)) {
            let slot = u64::from(*index % RING_SIZE);
            *index = index.wrapping_add(1);
            let index = *index;
            let head = queue.to_le_bytes();
            self.store(base + 0x204 + 2 * slot, &head);
            self.store(base + 0x202, &index.to_le_bytes());
        }
        self.write(mmio::QUEUE_NOTIFY, queue.into());
    }

    /// A request with few domains, endpoints and pages, most of them well-formed.
    fn request(&mut self, input: &mut Input<'_>) {
        let kind = input.byte() % 7;
        let small = |input: &mut Input<'_>| u32::from(input.byte() % 5);
        let page = |input: &mut Input<'_>| (u64::from(input.byte()) % 12) << 12;
        let mut request = vec![kind, 0, 0, 0];
        request.extend(small(input).to_le_bytes());
        match kind {
            3 | 4 => {
                let first = page(input);
                let last = first.wrapping_add(page(input)) | 0xfff;
                request.extend(first.to_le_bytes());
                request.extend(last.to_le_bytes());
                if kind == 3 {
                    request.extend(page(input).to_le_bytes());
                }
                request.extend((small(input) & if kind == 3 { 7 } else { 0 }).to_le_bytes());
            }
            _ => {
                request.extend(small(input).to_le_bytes());
                request.extend(u32::from(input.byte() % 16 == 1).to_le_bytes());
                request.resize(72, 0);
            }
        }
        let odd = input.byte();
        if odd & 0xf0 == 0xf0 {
            let at = usize::from(input.byte()) % request.len();
            if let Some(byte) = request.get_mut(at) {
                *byte = input.byte();
            }
        }
        self.store(REQUEST, &request);
        let length = match kind {
            1 | 2 => 20,
            3 => 36,
            4 => 28,
            _ => 72,
        };
        let writable = if odd & 0xf == 0xf {
            u32::from(input.byte())
        } else {
            4 + if kind == 5 { 48 } else { 0 }
        };
        self.offer(0, length, writable);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 12 {
            0..=4 => self.request(input),
            // A device enters, and stays a while.
            5 => {
                let which = usize::from(input.byte()) % usize::from(ENDPOINTS);
                if self.guards.len() < GUARDS
                    && let Some(view) = self.views.get(which)
                {
                    self.guards.push(view.memory());
                }
            }
            6 => drop(self.guards.pop()),
            7 => {
                let which = usize::from(input.byte()) % usize::from(ENDPOINTS);
                let address = GuestAddress(u64::from(input.u16()));
                if let Some(view) = self.views.get(which) {
                    let memory = view.memory();
                    memory.translate(address, Access::Write);
                    let _ = memory.read_slice(&mut [0; 300], address);
                }
            }
            // A buffer for faults; the bypass field; any register.
            8 => self.offer(1, 0, 24),
            9 => {
                let at = u64::from(input.byte());
                let value = [input.byte()];
                drop(self.mmio.write(BASE + mmio::CONFIG + at % 64, &value));
            }
            10 => {
                let at = u64::from(input.u16());
                self.store(at, &input.u64().to_le_bytes());
            }
            _ => {
                let state = self.domains.save();
                let restored = self.domains.restore(state.clone());
                debug_assert!(restored.is_ok(), "{restored:?}");
                let state = self.transport.save();
                let restored = self.transport.restore(state);
                debug_assert!(restored.is_ok(), "{restored:?}");
                self.transport.resume();
                if input.byte().is_multiple_of(4) {
                    self.start();
                }
            }
        }
    }
}

/// Runs `data` as a guest; what it may not do is panic or hang, and once nothing is in use every request is answered.
pub fn virtio_iommu(data: &[u8]) {
    let Ok(mut machine) = Machine::new() else {
        return;
    };
    let mut input = Input(data);
    while !input.0.is_empty() {
        machine.step(&mut input);
    }
    machine.transport.pause();
    machine.guards.clear();
    machine.domains.reset();
    assert!(machine.domains.settled(), "nobody is left to wait for");
}
