//! How a function is reset that has no reset of its own: with its slot, if nobody else has anything there. Over the fake of the seam; in the
//! lab the scenario `sriov` resets a real kernel's.
#![expect(clippy::unwrap_used, reason = "test code")]

mod vf;

use std::sync::Arc;

use pio_mmio_bus::bus::{AddressSpace, Bus};
use pio_mmio_bus::interrupt::RecordingRouter;
use pio_mmio_bus::pci::{Decoder, PciFunction};
use sriov_vfio::sysfs::PciAddress;
use sriov_vfio::vfio::fake::{FakeDevice, FakeSlot};
use sriov_vfio::vfio::{
    AssignedFunction, Holder, Policy, RegionIndex, VfioDevice, reset_functions,
};
use vf::{EXPRESS, config, device, put};

fn at(address: &str) -> PciAddress {
    address.parse().unwrap()
}

/// A card without function-level reset.
fn plain(slot: &Arc<FakeSlot>) -> Arc<FakeDevice> {
    let mut config = config();
    put(&mut config, EXPRESS + 4, &[0; 4]);
    Arc::new(device(config).in_slot(slot))
}

fn assign(device: &Arc<FakeDevice>) -> Arc<AssignedFunction> {
    let bus = |space| Bus::new(space).unwrap();
    let decoder = Decoder::new(bus(AddressSpace::Pio), bus(AddressSpace::Mmio));
    let router = RecordingRouter::new();
    let shared: Arc<dyn VfioDevice> = device.clone();
    AssignedFunction::new(shared, Policy::default(), &decoder, &router).unwrap()
}

/// How often the slot was reset, and the device alone.
fn resets(slot: &FakeSlot, device: &FakeDevice) -> (usize, usize) {
    (slot.resets(), device.resets())
}

#[test]
fn a_function_that_resets_itself_does() {
    let slot = FakeSlot::new([(at("01:00.0"), Holder::Open)]);
    let device = Arc::new(device(config()).in_slot(&slot));
    let function = assign(&device);
    function.reset();
    reset_functions(&[(at("01:00.0"), function)]);
    assert_eq!(resets(&slot, &device), (0, 2));
}

#[test]
fn one_that_cannot_is_reset_with_its_slot() {
    // What else is there, nobody uses.
    let slot = FakeSlot::new([
        (at("01:00.0"), Holder::Open),
        (at("01:00.1"), Holder::Closed),
    ]);
    let device = plain(&slot);
    let function = assign(&device);
    function.reset();
    assert_eq!(resets(&slot, &device), (1, 0));
    assert!(!function.take_failure());
}

/// PCI, Advanced Capabilities for Conventional PCI, §3: what a device without PCI Express says.
#[test]
fn a_conventional_function_says_that_it_resets_itself() {
    let slot = FakeSlot::new([(at("01:00.0"), Holder::Open)]);
    for (features, expected) in [(0x03, (0, 1)), (0x01, (1, 0))] {
        let mut config = config();
        put(&mut config, EXPRESS + 4, &[0; 4]);
        put(&mut config, vf::VENDOR, &[0x13, 0, 6, features, 0, 0]);
        let slot_before = slot.resets();
        let device = Arc::new(device(config).in_slot(&slot));
        assign(&device).reset();
        let (slot, alone) = resets(&slot, &device);
        assert_eq!((slot - slot_before, alone), expected);
    }
}

#[test]
fn a_slot_that_somebody_else_has_a_share_of_is_not_reset() {
    let slot = FakeSlot::new([
        (at("01:00.0"), Holder::Open),
        (at("01:00.1"), Holder::Other),
    ]);
    let device = plain(&slot);
    let function = assign(&device);
    function.reset();
    reset_functions(&[(at("01:00.0"), function.clone())]);
    // By what the kernel finds for it alone.
    assert_eq!(resets(&slot, &device), (0, 2));
    // And if the other one got there between the question and the reset, the kernel refuses.
    assert!(device.reset_slot().is_err());
    slot.set_holder(at("01:00.1"), Holder::Closed);
    function.reset();
    assert_eq!(resets(&slot, &device), (1, 2));
}

#[test]
fn a_slot_that_two_functions_share_is_reset_for_both_at_once() {
    let slot = FakeSlot::new(["01:00.0", "01:00.1"].map(|function| (at(function), Holder::Open)));
    let devices = [plain(&slot), plain(&slot)];
    let functions = devices.each_ref().map(assign);
    // Not under the other one's feet.
    functions[0].reset();
    assert_eq!(resets(&slot, &devices[0]), (0, 1));
    let [first, second] = functions;
    let (first, second) = ((at("01:00.0"), first), (at("01:00.1"), second));
    reset_functions(std::slice::from_ref(&first));
    assert_eq!(resets(&slot, &devices[0]), (0, 2));
    reset_functions(&[first, second]);
    assert_eq!(resets(&slot, &devices[0]), (1, 2));
    assert_eq!(devices[1].resets(), 0);
}

/// A device that cannot be reset at all does at least no DMA any more.
#[test]
fn a_function_masters_the_bus_no_more_after_a_reset() {
    let device = Arc::new(device(config()));
    let function = assign(&device);
    let command = || device.contents(RegionIndex::Config).get(4).copied();
    function.write_config(4, &[6, 0]);
    assert_eq!(command(), Some(7));
    function.reset();
    assert_eq!(command(), Some(3));
    function.write_config(4, &[6, 0]);
    reset_functions(&[(at("01:00.0"), function)]);
    assert_eq!(command(), Some(3));
}
