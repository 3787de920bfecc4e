//! A physical function behind a root port, and what a guest does to it.
#![allow(dead_code, reason = "each test uses what it needs of the machine")]
#![expect(clippy::unwrap_used, reason = "test code")]

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use pio_mmio_bus::bus::{AccessError, AddressSpace, Bus, BusDevice, BusReader, Doorbell, Outcome};
use pio_mmio_bus::interrupt::{IrqLine, RecordingLine};
use pio_mmio_bus::pci::{
    BarKind, Capability, ConfigBuilder, Decoder, Ecam, Identity, PciFunction, PortType,
    RequesterId, RootComplex, RootPort,
};
use sriov_vfio::emulated::{
    Layout, PhysicalFunction, VfBarLayout, VfFactory, VfShare, VirtualFunction,
};
use sriov_vfio::spec::sriov::VF_ID;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x10c9,
    revision: 1,
    class: [2, 0, 0],
    subsystem_vendor: 0x8086,
    subsystem: 0,
};
/// Where the guest finds the configuration spaces of buses 0 and 1.
pub const ECAM: u64 = 0xb000_0000;
/// Where each share of a BAR has a doorbell.
pub const DOORBELL: u64 = 0x3000;
/// Where the SR-IOV capability is: behind ARI's.
pub const SRIOV: u16 = 0x108;

/// What an 82576 says: two 64-bit BARs of 16 KiB.
pub fn igb() -> Layout {
    let kind = BarKind::Memory64 { prefetchable: true };
    Layout {
        total_vfs: 8,
        first_vf_offset: 0x80,
        vf_stride: 2,
        vf_device_id: 0x10ca,
        bars: [0, 3]
            .map(|index| VfBarLayout {
                index,
                kind,
                size: 0x4000,
            })
            .to_vec(),
        ..Layout::default()
    }
}

/// Answers each read with its number, and is counted.
struct Numbered(u8, Arc<Made>);

impl Drop for Numbered {
    fn drop(&mut self) {
        self.1.devices.fetch_sub(1, Ordering::Relaxed);
    }
}

impl BusDevice for Numbered {
    fn read(&self, _: u64, data: &mut [u8]) -> Result<(), AccessError> {
        data.fill(self.0);
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Result<(), AccessError> {
        Ok(())
    }
}

/// Counts the functions that exist, and refuses some.
pub struct Made {
    /// Rung by all doorbells.
    pub rung: Arc<EventFd>,
    pub created: AtomicUsize,
    pub alive: AtomicUsize,
    /// Devices behind BARs that are alive.
    pub devices: AtomicUsize,
    pub refused: Mutex<Vec<u16>>,
    /// Whose requests are forwarded.
    pub forwarded: Mutex<BTreeSet<u16>>,
}

impl Made {
    fn new() -> Self {
        Self {
            rung: Arc::new(EventFd::new(EFD_NONBLOCK).unwrap()),
            created: AtomicUsize::default(),
            alive: AtomicUsize::default(),
            devices: AtomicUsize::default(),
            refused: Mutex::default(),
            forwarded: Mutex::default(),
        }
    }

    fn doorbell(&self) -> Doorbell {
        Doorbell {
            width: None,
            datamatch: None,
            needs_value: false,
            eventfd: Arc::clone(&self.rung),
        }
    }
}

/// A function whose end is counted.
struct Counted {
    function: Arc<dyn PciFunction>,
    index: u16,
    made: Arc<Made>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.made.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PciFunction for Counted {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.function.read_config(offset, data);
    }
    fn write_config(&self, offset: u16, data: &[u8]) {
        self.function.write_config(offset, data);
    }
    fn set_requester(&self, requester: RequesterId) {
        self.function.set_requester(requester);
    }
    fn set_upstream(&self, forwarded: bool) {
        let mut all = self.made.forwarded.lock().unwrap();
        if forwarded {
            all.insert(self.index);
        } else {
            all.remove(&self.index);
        }
        self.function.set_upstream(forwarded);
    }
    fn reset(&self) {
        self.function.reset();
    }
}

struct Factory(Arc<Decoder>, Arc<Made>);

impl VfFactory for Factory {
    fn create(&self, index: u16) -> Result<VirtualFunction, Box<dyn Error + Send + Sync>> {
        if self.1.refused.lock().unwrap().contains(&index) {
            return Err(format!("no cable for {index}").into());
        }
        self.1.created.fetch_add(1, Ordering::Relaxed);
        self.1.alive.fetch_add(1, Ordering::Relaxed);
        let identity = Identity {
            vendor: VF_ID,
            device: VF_ID,
            ..IDENTITY
        };
        let config = ConfigBuilder::virtual_function(identity)
            .capability(Capability::express(PortType::Endpoint))
            .build(&self.0)?;
        let number = u8::try_from(index)?;
        Ok(VirtualFunction {
            function: Arc::new(Counted {
                function: config,
                index,
                made: Arc::clone(&self.1),
            }),
            shares: [(0, number), (3, number + 0x80)]
                .map(|(bar, number)| {
                    self.1.devices.fetch_add(1, Ordering::Relaxed);
                    VfShare {
                        bar,
                        device: Arc::new(Numbered(number, Arc::clone(&self.1))),
                        doorbells: vec![(DOORBELL, self.1.doorbell())],
                    }
                })
                .into(),
        })
    }
}

pub struct Machine {
    pub mmio: BusReader,
    pub root: Arc<RootComplex>,
    pub port: Arc<RootPort>,
    pub physical: Arc<PhysicalFunction>,
    pub made: Arc<Made>,
}

pub const PORT: RequesterId = RequesterId::new(0, RequesterId::devfn_of(1, 0));

impl Machine {
    /// The function at 01:00.0 behind a port that forwards ARI requests.
    pub fn new(layout: Layout) -> Self {
        let (pio, mmio) = (
            Bus::new(AddressSpace::Pio).unwrap(),
            Bus::new(AddressSpace::Mmio).unwrap(),
        );
        let decoder = Decoder::new(pio, mmio.clone());
        let lines = std::array::from_fn(|_| Arc::new(RecordingLine::default()) as Arc<dyn IrqLine>);
        let root = RootComplex::new(Arc::clone(&decoder), lines).unwrap();
        let port = RootPort::new(&root, 1).unwrap();
        let made = Arc::new(Made::new());
        let factory = Box::new(Factory(Arc::clone(&decoder), Arc::clone(&made)));
        let builder =
            ConfigBuilder::endpoint(IDENTITY).capability(Capability::express(PortType::Endpoint));
        let physical = PhysicalFunction::new(builder, layout, factory, &decoder).unwrap();
        port.bus().insert(0, physical.clone()).unwrap();
        let window = Arc::new(Ecam::new(&root));
        mmio.insert(ECAM, 2 << 20, "configuration window", window)
            .unwrap();
        let machine = Self {
            mmio: mmio.reader(),
            root,
            port,
            physical,
            made,
        };
        machine.number_bus(1, 2);
        // Device control 2 of the port: ARI forwarding.
        machine
            .root
            .write_config(PORT, 0x40 + 0x28, &0x20_u16.to_le_bytes());
        machine
    }

    /// Numbers the bus behind the port.
    pub fn number_bus(&self, secondary: u8, subordinate: u8) {
        self.root
            .write_config(PORT, 0x18, &[0, secondary, subordinate]);
    }

    pub fn write(&self, offset: usize, data: &[u8]) {
        let offset = SRIOV + u16::try_from(offset).unwrap();
        self.physical.write_config(offset, data);
    }

    pub fn write16(&self, offset: usize, value: u16) {
        self.write(offset, &value.to_le_bytes());
    }

    pub fn write32(&self, offset: usize, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    pub fn read16(&self, offset: usize) -> u16 {
        let mut bytes = [0; 2];
        self.physical
            .read_config(SRIOV + u16::try_from(offset).unwrap(), &mut bytes);
        u16::from_le_bytes(bytes)
    }

    pub fn read32(&self, offset: usize) -> u32 {
        u32::from(self.read16(offset)) | u32::from(self.read16(offset + 2)) << 16
    }

    /// The numbers of the functions that exist.
    pub fn numbers(&self) -> Vec<u16> {
        self.physical
            .virtual_functions()
            .into_iter()
            .map(|(index, _)| index)
            .collect()
    }

    /// What answers at an address.
    pub fn peek(&mut self, address: u64) -> Option<u8> {
        let mut byte = [0];
        let outcome = self.mmio.read(address, &mut byte);
        matches!(outcome, Outcome::Done)
            .then_some(byte)
            .map(|[byte]| byte)
    }
}
