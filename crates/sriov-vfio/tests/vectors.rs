//! Vectors of MSI-X and MSI are the host's from when the guest first unmasks them: in which order the kernel is told, over the fake.
#![expect(clippy::unwrap_used, reason = "test code")]

mod vf;

use std::sync::Arc;

use pio_mmio_bus::bus::{AddressSpace, Bus, BusReader, Outcome};
use pio_mmio_bus::interrupt::RecordingRouter;
use pio_mmio_bus::pci::{Decoder, PciFunction};
use proptest::prelude::*;
use sriov_vfio::vfio::fake::{FakeDevice, IrqCall};
use sriov_vfio::vfio::{AssignedFunction, Interrupt, Policy, RegionIndex};
use vf::{MSI, MSIX, config, put};

const VECTORS: u16 = 8;

struct Machine {
    mmio: BusReader,
    router: RecordingRouter,
    device: Arc<FakeDevice>,
    function: Arc<AssignedFunction>,
}

impl Machine {
    /// A function with 8 vectors of MSI-X, whose table is at 0xd000_0000, and 4 of MSI, whose registers have 32-bit addresses and masks.
    fn new(change: fn(FakeDevice) -> FakeDevice) -> Self {
        let mut config = config();
        let [size, _] = (VECTORS - 1).to_le_bytes();
        put(&mut config, MSIX + 2, &[size, 0]);
        put(&mut config, MSI + 2, &[0x04, 0x01]);
        let device = FakeDevice::new(config)
            .region(RegionIndex::Bar(0), vec![0; 0x4000], None)
            .region(RegionIndex::Bar(3), vec![0; 0x4000], None)
            .vectors(Interrupt::Msi, 4)
            .vectors(Interrupt::Msix, VECTORS.into());
        let bus = |space| Bus::new(space).unwrap();
        let mmio = bus(AddressSpace::Mmio);
        let decoder = Decoder::new(bus(AddressSpace::Pio), mmio.clone());
        let router = RecordingRouter::new();
        let device = Arc::new(change(device));
        let function =
            AssignedFunction::new(device.clone(), Policy::default(), &decoder, &router).unwrap();
        let machine = Self {
            mmio: mmio.reader(),
            router,
            device,
            function,
        };
        machine.write(0x1c, &0xd000_0000_u32.to_le_bytes());
        machine.write(4, &[6, 0]);
        // How many vectors of MSI the host has was asked.
        machine.device.take_irq_calls();
        machine
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        let offset = u16::try_from(offset).unwrap();
        self.function.write_config(offset, bytes);
    }

    /// Writes the mask of a vector of MSI-X.
    fn mask(&mut self, vector: u64, masked: bool) {
        let word = u32::from(masked).to_le_bytes();
        let written = self.mmio.write(0xd000_000c + 16 * vector, &word);
        assert!(matches!(written, Outcome::Done));
    }

    fn calls(&self) -> Vec<IrqCall> {
        self.device.take_irq_calls()
    }
}

fn connect(first: u32, vectors: &[u8]) -> IrqCall {
    let vectors = vectors.iter().map(|&vector| vector != 0).collect();
    IrqCall::Connect(Interrupt::Msix, first, vectors)
}

const OFF: IrqCall = IrqCall::Disconnect(Interrupt::Msix);
const ENABLE: [u8; 2] = [0, 0x80];
const FUNCTION_MASK: [u8; 2] = [0, 0xc0];

/// As Linux does: enabled with all masked, then each driver unmasks its own.
#[test]
fn a_vector_is_added_where_the_kernel_can() {
    let mut machine = Machine::new(FakeDevice::growing);
    machine.write(MSIX + 2, &FUNCTION_MASK);
    // The kind is on, and with it the device's, with the least that it can be on with.
    assert_eq!(machine.calls(), [connect(0, &[0])]);
    machine.mask(0, false);
    assert_eq!(machine.calls(), [], "the function is masked");
    machine.write(MSIX + 2, &ENABLE);
    assert_eq!(machine.calls(), [connect(0, &[1])]);
    machine.mask(2, false);
    assert_eq!(machine.calls(), [connect(2, &[1])]);
    machine.mask(5, false);
    assert_eq!(machine.calls(), [connect(5, &[1])]);
    // Among those that there are by now.
    machine.mask(1, false);
    assert_eq!(machine.calls(), [connect(1, &[1])]);
    // Masked and unmasked again: nothing that the kernel has to do with.
    machine.mask(2, true);
    machine.mask(2, false);
    assert_eq!(machine.calls(), []);
    machine.write(MSIX + 2, &[0, 0]);
    assert_eq!(machine.calls(), [OFF]);
    assert!(!machine.function.take_failure());
}

/// `VFIO_IRQ_INFO_NORESIZE`: kernels before 6.4.
#[test]
fn elsewhere_all_are_switched_on_anew_with_one_more() {
    let mut machine = Machine::new(|device| device);
    machine.mask(1, false);
    machine.write(MSIX + 2, &ENABLE);
    assert_eq!(machine.calls(), [connect(0, &[0, 1])]);
    machine.mask(0, false);
    assert_eq!(machine.calls(), [connect(0, &[1])]);
    machine.mask(1, true);
    machine.mask(4, false);
    assert_eq!(machine.calls(), [OFF, connect(0, &[1, 1, 0, 0, 1])]);
    machine.mask(3, false);
    assert_eq!(machine.calls(), [connect(3, &[1])]);
    assert!(!machine.function.take_failure());
}

#[test]
fn runs_that_are_unmasked_at_once_are_one_call() {
    let mut machine = Machine::new(FakeDevice::growing);
    machine.write(MSIX + 2, &FUNCTION_MASK);
    for vector in [1, 2, 3, 6, 7] {
        machine.mask(vector, false);
    }
    machine.calls();
    machine.write(MSIX + 2, &ENABLE);
    let runs = [connect(1, &[1, 1, 1]), connect(6, &[1, 1])];
    assert_eq!(machine.calls(), runs);
}

#[test]
fn a_vector_is_not_wired_while_the_function_may_not_master_the_bus() {
    let mut machine = Machine::new(FakeDevice::growing);
    machine.write(4, &[2, 0]);
    machine.write(MSIX + 2, &ENABLE);
    machine.mask(0, false);
    assert_eq!(machine.calls(), [connect(0, &[0])]);
    machine.write(4, &[6, 0]);
    assert_eq!(machine.calls(), [connect(0, &[1])]);
}

#[test]
fn vectors_of_msi_are_wired_one_by_one_too() {
    let machine = Machine::new(|device| device);
    let connect = |first, vectors: &[u8]| match connect(first, vectors) {
        IrqCall::Connect(_, first, vectors) => IrqCall::Connect(Interrupt::Msi, first, vectors),
        off => off,
    };
    // All but vector 1 are masked; four are granted.
    machine.write(MSI + 12, &0b1101_u32.to_le_bytes());
    machine.write(MSI + 2, &[0x21, 0]);
    assert_eq!(machine.calls(), [connect(0, &[0, 1, 0, 0])]);
    machine.write(MSI + 12, &0b1000_u32.to_le_bytes());
    assert_eq!(machine.calls(), [connect(0, &[1]), connect(2, &[1])]);
    assert!(!machine.function.take_failure());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever the guest does, a vector that it lets through reaches it, and the kernel refuses nothing.
    #[test]
    fn what_is_let_through_is_delivered(
        grows: bool,
        steps in prop::collection::vec((0..12_u64, any::<bool>()), 1..60),
    ) {
        let mut machine = Machine::new(if grows { FakeDevice::growing } else { |device| device });
        let (mut masks, mut control, mut master) = ([true; 8], 0_u8, true);
        for (what, on) in steps {
            match usize::try_from(what).unwrap() {
                vector @ 0..8 => {
                    masks[vector] = on;
                    machine.mask(what, on);
                }
                8 => {
                    master = on;
                    machine.write(4, &[if on { 6 } else { 2 }, 0]);
                }
                9 if on => {
                    machine.function.reset();
                    (masks, control, master) = ([true; 8], 0, true);
                    machine.write(0x1c, &0xd000_0000_u32.to_le_bytes());
                    machine.write(4, &[6, 0]);
                }
                bit => {
                    let bit = if bit == 11 { 0x40 } else { 0x80 };
                    control = control & !bit | if on { bit } else { 0 };
                    machine.write(MSIX + 2, &[0, control]);
                }
            }
            for (vector, masked) in masks.into_iter().enumerate() {
                if control == 0x80 && master && !masked {
                    prop_assert!(machine.device.fire(Interrupt::Msix, vector));
                    prop_assert_eq!(machine.router.take().len(), 1);
                }
            }
        }
        prop_assert!(!machine.function.take_failure());
    }
}
