//! Devices of VFIO behind their models, over the fakes of the seam.
#![cfg(feature = "vfio")]
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "test code")]

mod common;

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use common::{parse, words};
use pio_mmio_bus::bus::{AddressSpace, Bus, Outcome};
use pio_mmio_bus::interrupt::RecordingRouter;
use pio_mmio_bus::pci::{Decoder, PciFunction};
use sriov_vfio::vfio::fake::{FakeDevice, FakeDmaSpace};
use sriov_vfio::vfio::{
    Access as Permission, AssignedFunction, Interrupt, Policy, Region, RegionIndex, VfioDevice,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vpio_model::bus::DenialSink;
use vpio_model::engine::{At, Denied, Dma};
use vpio_model::language::Access;
use vpio_model::models;
use vpio_model::vfio::{GuestDma, GuestDmaError, Modelled, ModelledError};

const MIB: usize = 1 << 20;
/// Where copies of descriptors are for the device.
const SHADOW: u64 = 0xc000_0000;
const PIN: Interrupt = Interrupt::Intx;

#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl DenialSink for Log {
    fn denied(&self, at: At, _access: Access, denied: &Denied) {
        let line = format!("{:#x}: {denied}", at.offset);
        self.0.lock().unwrap().push(line);
    }
}

/// A guest with 1 MiB and a card behind its model.
struct Machine {
    memory: Arc<GuestMemoryMmap>,
    dma: Arc<GuestDma>,
    card: Arc<FakeDevice>,
    log: Arc<Log>,
    modelled: Arc<Modelled<Arc<GuestDma>>>,
}

fn ram() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MIB)]).unwrap())
}

/// Configuration space with an I/O BAR 0.
fn config() -> Vec<u8> {
    let mut config = vec![0; 256];
    config[..4].copy_from_slice(&[0xec, 0x10, 0x39, 0x81]);
    config[0x10] = 1;
    config[0x3d] = 1;
    config
}

fn modelled(
    card: Arc<dyn VfioDevice>,
    text: &str,
    sink: Arc<dyn DenialSink>,
    memory: &Arc<GuestMemoryMmap>,
) -> Result<(Arc<GuestDma>, Modelled<Arc<GuestDma>>), ModelledError> {
    let model = parse(text);
    let space = FakeDmaSpace::default();
    let dma = GuestDma::map(&space, memory.clone(), SHADOW, model.shadow_bytes());
    let dma = Arc::new(dma.unwrap());
    let modelled = Modelled::new(card, &model, dma.clone(), &sink)?;
    Ok((dma, modelled))
}

impl Machine {
    /// The card's BARs have these sizes.
    fn new(text: &str, bars: &[usize]) -> Self {
        let mut card = FakeDevice::new(config()).vectors(PIN, 1);
        for (size, bar) in bars.iter().zip(0..) {
            card = card.region(RegionIndex::Bar(bar), vec![0; *size], None);
        }
        let (card, log, memory) = (Arc::new(card), Arc::new(Log::default()), ram());
        let (dma, modelled) = modelled(card.clone(), text, log.clone(), &memory).unwrap();
        Self {
            memory,
            dma,
            card,
            log,
            modelled: Arc::new(modelled),
        }
    }

    fn write(&self, bar: u8, offset: u64, value: u32) -> io::Result<()> {
        let bytes = value.to_le_bytes();
        self.modelled.write(RegionIndex::Bar(bar), offset, &bytes)
    }

    /// What the card holds.
    fn card(&self, bar: u8, offset: usize) -> u32 {
        let bytes = self.card.contents(RegionIndex::Bar(bar));
        u32::from_le_bytes(*bytes[offset..].first_chunk().unwrap())
    }
}

/// THREATS.md: a DMA that starts outside the guest, and an event that the model does not know.
#[test]
fn what_the_model_denies_never_reaches_the_kernel() {
    let machine = Machine::new(models::RTL8139, &[256]);
    assert_eq!(machine.card.resets(), 1, "a model begins with a reset");
    let before = machine.card.accesses();
    machine.write(0, 0x20, 0xf_ff00).unwrap();
    machine.write(0, 0x10, 0x100).unwrap();
    assert_eq!(
        (machine.card(0, 0x20), machine.card(0, 0x10)),
        (0xf_ff00, 0x100)
    );
    machine.write(0, 0x24, 0xf_ff01).unwrap();
    let denied = machine.write(0, 0x14, 0x100).unwrap_err();
    assert_eq!(denied.kind(), io::ErrorKind::PermissionDenied);
    assert_eq!(machine.card(0, 0x14), 0);
    machine.write(0, 0xe8, 0).unwrap_err();
    machine.write(1, 0x10, 0).unwrap_err();
    let mut byte = [0];
    machine
        .modelled
        .read(RegionIndex::Bar(0), 0x37, &mut byte)
        .unwrap();
    assert_eq!(machine.card.accesses() - before, 4);
    let counts = machine.modelled.counts();
    assert_eq!((counts.accesses, counts.hooked, counts.denied), (7, 5, 3));
    let log = machine.log.0.lock().unwrap();
    assert_eq!(log.len(), 2, "{log:?}");
    assert!(log[0].starts_with("0x14: transfer `tx_dma[1]`"), "{log:?}");
}

#[test]
fn on_a_guests_bus_what_is_denied_reads_as_ones() {
    let machine = Machine::new(models::RTL8139, &[256]);
    let pio = Bus::new(AddressSpace::Pio).unwrap();
    let decoder = Decoder::new(pio.clone(), Bus::new(AddressSpace::Mmio).unwrap());
    let router = RecordingRouter::new();
    let policy = Policy::default();
    let function =
        AssignedFunction::new(machine.modelled.clone(), policy, &decoder, &router).unwrap();
    function.write_config(0x10, &0xc000_u32.to_le_bytes());
    function.write_config(4, &[1, 0]);
    let mut vcpu = pio.reader();
    assert_eq!(vcpu.write(0xc03c, &[5, 0]), Outcome::Done);
    assert_eq!(machine.card(0, 0x3c), 5);
    let mut data = [0; 4];
    assert!(matches!(vcpu.read(0xc0e8, &mut data), Outcome::Failed(_)));
    assert_eq!(data, [0xff; 4]);
    // The guest's reset of the function is the model's too.
    machine.write(0, 0x30, 0x1000).unwrap();
    function.reset();
    assert_eq!(machine.card.resets(), 2);
}

/// An 82540EM's driver looks for what was sent when it is interrupted.
#[test]
fn descriptors_are_back_before_the_interrupt() {
    let machine = Machine::new(models::E1000, &[0x2_0000, 64]);
    let card = &machine.card;
    let ring = words(&[0x5000, 0, 0x0b00_0040, 0]);
    machine
        .memory
        .write_slice(&ring, GuestAddress(0x4000))
        .unwrap();
    for (offset, value) in [
        (0x3800, 0x4000),
        (0x3804, 0),
        (0x3808, 0x80),
        (0x400, 2),
        (0x3818, 1),
    ] {
        machine.write(0, offset, value).unwrap();
    }
    assert_eq!(
        u64::from(machine.card(0, 0x3800)),
        SHADOW,
        "not the guest's"
    );
    let mut copy = [0; 16];
    machine.dma.read_shadow(0, &mut copy);
    assert_eq!(copy[..], ring);

    let (guest, resample) = (
        EventFd::new(0).unwrap(),
        EventFd::new(EFD_NONBLOCK).unwrap(),
    );
    machine.modelled.connect(PIN, 0, &[Some(&guest)]).unwrap();
    machine.modelled.resample(&resample).unwrap();
    // The card sends, says so, and interrupts.
    machine.dma.write_shadow(12, &[1]);
    card.set_pin(true);
    assert_eq!(guest.read().unwrap(), 1);
    let status: u8 = machine.memory.read_obj(GuestAddress(0x400c)).unwrap();
    assert_eq!(status, 1);
    assert_eq!(machine.modelled.counts().interrupts, 1);
    // The guest ended the interrupt, and the card has another.
    resample.write(1).unwrap();
    assert!(card.unmask_pin());
    assert_eq!(guest.read().unwrap(), 1);

    machine.modelled.disconnect(PIN).unwrap();
    assert_eq!(card.connected(PIN), 0);
}

/// Linux resets an 82540EM through the ports, by the address and the data of a register.
#[test]
fn a_card_is_reset_through_its_ports_and_nothing_else_is_done_there() {
    let machine = Machine::new(models::E1000, &[0x2_0000, 64]);
    let (address, data, reset) = (0, 4, 0x0400_0000);
    machine.write(0, 0x400, 2).unwrap();
    machine.write(0, 0x3800, 0x4000).unwrap_err();
    machine.write(1, data, 0).unwrap_err();
    machine.write(1, address, 0x3800).unwrap();
    machine.write(1, data, reset).unwrap_err();
    let mut word = [0; 4];
    machine
        .modelled
        .read(RegionIndex::Bar(1), data, &mut word)
        .unwrap_err();
    assert_eq!((machine.card(0, 0x400), machine.card(1, 4)), (2, 0));
    machine.write(1, address, 0).unwrap();
    machine.write(1, data, reset).unwrap();
    assert_eq!((machine.card(0, 0x400), machine.card(1, 4)), (0, reset));
    machine.write(0, 0x3800, 0x4000).unwrap();
}

#[test]
fn a_device_that_does_not_interrupt_is_looked_at() {
    let machine = Machine::new(models::E1000, &[0x2_0000, 64]);
    let guest = EventFd::new(EFD_NONBLOCK).unwrap();
    machine.modelled.connect(PIN, 0, &[Some(&guest)]).unwrap();
    let ring = words(&[0x5000, 0, 0x0b00_0040, 0]);
    machine
        .memory
        .write_slice(&ring, GuestAddress(0x4000))
        .unwrap();
    for (offset, value) in [(0x3800, 0x4000), (0x3808, 0x80), (0x400, 2), (0x3818, 1)] {
        machine.write(0, offset, value).unwrap();
    }
    machine.dma.write_shadow(12, &[1]);
    let status = || machine.memory.read_obj::<u8>(GuestAddress(0x400c)).unwrap();
    while status() == 0 {
        std::thread::yield_now();
    }
    assert!(guest.read().is_err(), "nobody was interrupted");
}

/// A device whose resets work as often as it says.
struct Stubborn(FakeDevice, usize);

impl VfioDevice for Stubborn {
    fn region(&self, index: RegionIndex) -> Region {
        VfioDevice::region(&self.0, index)
    }
    fn read(&self, index: RegionIndex, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.0.read(index, offset, data)
    }
    fn write(&self, index: RegionIndex, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(index, offset, data)
    }
    fn map(&self, index: RegionIndex, part: Range<u64>) -> io::Result<MmapRegion> {
        self.0.map(index, part)
    }
    fn vectors(&self, interrupt: Interrupt) -> u32 {
        VfioDevice::vectors(&self.0, interrupt)
    }
    fn grows(&self, interrupt: Interrupt) -> bool {
        self.0.grows(interrupt)
    }
    fn connect(
        &self,
        interrupt: Interrupt,
        first: u32,
        eventfds: &[Option<&EventFd>],
    ) -> io::Result<()> {
        self.0.connect(interrupt, first, eventfds)
    }
    fn disconnect(&self, interrupt: Interrupt) -> io::Result<()> {
        self.0.disconnect(interrupt)
    }
    fn resample(&self, eventfd: &EventFd) -> io::Result<()> {
        self.0.resample(eventfd)
    }
    fn reset(&self) -> io::Result<()> {
        self.0.reset()?;
        if self.0.resets() > self.1 {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(())
    }
}

fn stubborn(resets: usize) -> Arc<Stubborn> {
    let card = FakeDevice::new(config()).region(RegionIndex::Bar(0), vec![0; 256], None);
    Arc::new(Stubborn(card, resets))
}

#[test]
fn a_device_that_is_not_reset_is_not_used() {
    let new = |card| modelled(card, models::NE2000, Arc::new(()), &ram());
    assert_eq!(new(stubborn(0)).err(), Some(ModelledError::Reset));
    let (_, modelled) = new(stubborn(1)).unwrap();
    let bar = RegionIndex::Bar(0);
    modelled.write(bar, 0, &[0x21]).unwrap();
    modelled.reset().unwrap_err();
    modelled.write(bar, 0, &[0x21]).unwrap_err();
    modelled.read(bar, 0, &mut [0]).unwrap_err();
}

#[test]
fn a_model_of_another_device_is_refused() {
    let card = FakeDevice::new(config()).region(RegionIndex::Bar(0), vec![0; 256], None);
    let refused = modelled(Arc::new(card), models::E1000, Arc::new(()), &ram()).err();
    assert_eq!(
        refused.unwrap().to_string(),
        "model \"e1000\": the device has no BAR of 0x20000 bytes for the space `regs`"
    );
}

#[test]
fn only_what_is_the_guests_is_translated() {
    let ranges = [(GuestAddress(0), MIB), (GuestAddress(1 << 32), MIB)];
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap());
    let space = FakeDmaSpace::default();
    let dma = GuestDma::map(&space, memory, SHADOW, 8192).unwrap();
    let all = Permission::all();
    let size = 1 << 20;
    assert_eq!(
        space.mappings(),
        [(0, size, all), (SHADOW, 8192, all), (1 << 32, size, all)]
    );
    for (address, length, inside) in [
        (0, 1, true),
        (0, size, true),
        (0, size + 1, false),
        (size - 1, 1, true),
        (size - 1, 2, false),
        (size, 1, false),
        (0x100, 0, false),
        ((1 << 32) + 5, size - 5, true),
        ((1 << 32) - 1, 2, false),
        (SHADOW, 1, false),
        (u64::MAX, 1, false),
        (u64::MAX, 2, false),
        (1, u64::MAX, false),
    ] {
        let given = dma.translate(address, length, Access::Write);
        assert_eq!(given, inside.then_some(address), "{address:#x} {length:#x}");
    }
    let mut data = [1; 4];
    assert!(!dma.read(size - 2, &mut data) && !dma.write(u64::MAX, &data));
    dma.write_shadow(8190, &[7, 7, 7]);
    dma.read_shadow(9000, &mut data);
    assert_eq!(data, [0; 4]);
}

#[test]
fn copies_are_where_nothing_else_is() {
    let space = FakeDmaSpace::default();
    assert!(matches!(
        GuestDma::map(&space, ram(), 0x8_0000, 4096),
        Err(GuestDmaError::Map(_))
    ));
}
