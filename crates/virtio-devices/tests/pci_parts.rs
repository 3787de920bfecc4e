//! The parts of a PCI function, for whoever makes physical and virtual functions of them.
#![expect(clippy::unwrap_used, reason = "test code")]

mod support;

use std::sync::{Arc, Mutex};

use pio_mmio_bus::bus::{AddressSpace, Bus, BusDevice};
use pio_mmio_bus::interrupt::{RecordingLine, RecordingRouter};
use pio_mmio_bus::pci::{
    Decoder, InterruptPin, IntxLines, IntxPin, PciFunction, PortType, RequesterId,
};
use support::{Memory, Recorder, memory};
use virtio_devices::transport::spec::pci::{SR_IOV, common};
use virtio_devices::transport::{PciOptions, PciParts};

fn parts(pin: Option<Arc<IntxPin>>, sr_iov: bool) -> PciParts<Memory> {
    let options = PciOptions {
        port: PortType::Endpoint,
        access_platform: false,
        sr_iov,
    };
    let router = RecordingRouter::new();
    PciParts::new(Recorder::new(), memory(), &router, pin, options).unwrap()
}

fn decoder() -> Arc<Decoder> {
    let bus = |space| Bus::new(space).unwrap();
    Decoder::new(bus(AddressSpace::Pio), bus(AddressSpace::Mmio))
}

fn pin() -> Arc<IntxPin> {
    let line = Arc::new(RecordingLine::default());
    IntxLines::new([0; 4].map(|_| Arc::clone(&line) as Arc<_>)).pin(1, InterruptPin::A)
}

fn word(function: &dyn PciFunction, offset: u16) -> u32 {
    let mut bytes = [0; 4];
    function.read_config(offset, &mut bytes);
    u32::from_le_bytes(bytes)
}

/// What the device offers.
fn features(registers: &dyn BusDevice) -> u64 {
    (0..2_u32).fold(0, |features, select| {
        registers
            .write(common::DEVICE_FEATURE_SELECT, &select.to_le_bytes())
            .unwrap();
        let mut word = [0; 4];
        registers.read(common::DEVICE_FEATURE, &mut word).unwrap();
        features | u64::from(u32::from_le_bytes(word)) << (32 * select)
    })
}

/// PCIe 6.0 §9.3.4.1: who it is, where its BARs are and whether they are decoded says the physical function.
#[test]
fn a_virtual_function_has_neither_name_nor_bars_nor_pin() {
    let parts = parts(None, false);
    let function = parts.virtual_function().build(&decoder()).unwrap();
    assert_eq!(word(&*function, 0), u32::MAX);
    function.write_config(4, &[0xff, 0xff]);
    assert_eq!(word(&*function, 4) & 0xffff, 4);
    for bar in 0..6 {
        function.write_config(0x10 + 4 * bar, &[0xff; 4]);
        assert_eq!(word(&*function, 0x10 + 4 * bar), 0);
    }
    assert_eq!(word(&*function, 0x3c), 0);
    // Revision, class and subsystem are those of any other.
    let own = self::parts(Some(pin()), false).endpoint();
    let own = own.build(&decoder()).unwrap();
    for offset in [0x08, 0x2c] {
        assert_eq!(word(&*function, offset), word(&*own, offset));
    }
    let own_id = word(&*own, 0) >> 16;
    assert_eq!(u32::from(parts.device_id()), own_id);
}

#[test]
fn only_a_physical_function_offers_sr_iov() {
    for sr_iov in [false, true] {
        let [(_, registers), _] = parts(Some(pin()), sr_iov).bars();
        let offered = features(&*registers.device) & SR_IOV.bits() != 0;
        assert_eq!(offered, sr_iov);
    }
}

#[test]
fn the_owner_of_the_memory_hears_of_each_requester_id() {
    let heard: Arc<Mutex<Vec<RequesterId>>> = Arc::default();
    let ear = Arc::clone(&heard);
    let parts = parts(None, false).on_requester(move |id| ear.lock().unwrap().push(id));
    let function = parts.virtual_function().build(&decoder()).unwrap();
    let ids = [0x0101, 0x0301].map(RequesterId);
    for id in ids {
        function.set_requester(id);
    }
    assert_eq!(*heard.lock().unwrap(), ids);
}

#[test]
fn each_queue_has_a_doorbell_in_the_first_bar() {
    let parts = parts(None, false);
    let [(index, registers), (msix_index, _)] = parts.bars();
    assert_eq!((index, msix_index), (0, 2));
    let doorbells = parts.doorbells();
    assert!(!doorbells.is_empty());
    for (offset, doorbell) in doorbells {
        assert!(offset < registers.size);
        // What the registers do with a write that no bus takes for a doorbell.
        registers.device.write(offset, &[0, 0]).unwrap();
        assert_eq!(doorbell.eventfd.read().unwrap(), 1);
    }
}
