//! A device of VFIO on a guest's bus, over the fake of the seam.
#![expect(clippy::unwrap_used, reason = "test code")]

mod vf;

use std::sync::Arc;

use pio_mmio_bus::bus::{AddressSpace, Bus, BusReader, Outcome};
use pio_mmio_bus::interrupt::RecordingRouter;
use pio_mmio_bus::pci::{Decoder, PciFunction, RequesterId};
use sriov_vfio::vfio::fake::{FakeDevice, FakeWindows};
use sriov_vfio::vfio::{AssignedFunction, Interrupt, Policy, RegionIndex};
use vf::{EXPRESS, MSIX, config, device};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

struct Machine {
    mmio: BusReader,
    router: RecordingRouter,
    device: Arc<FakeDevice>,
    function: Arc<AssignedFunction>,
}

impl Machine {
    fn new() -> Self {
        let (pio, mmio) = (
            Bus::new(AddressSpace::Pio).unwrap(),
            Bus::new(AddressSpace::Mmio).unwrap(),
        );
        let decoder = Decoder::new(pio, mmio.clone());
        let router = RecordingRouter::new();
        let device = Arc::new(device(config()));
        let function =
            AssignedFunction::new(device.clone(), Policy::default(), &decoder, &router).unwrap();
        function.set_requester(RequesterId(0x100));
        let machine = Self {
            mmio: mmio.reader(),
            router,
            device,
            function,
        };
        machine
            .function
            .write_config(0x10, &0xe000_0000_u32.to_le_bytes());
        machine
            .function
            .write_config(0x1c, &0xd000_0000_u32.to_le_bytes());
        machine.command(6);
        machine
    }

    fn command(&self, value: u16) {
        self.function.write_config(4, &value.to_le_bytes());
    }

    fn msix(&self, control: u16) {
        let at = u16::try_from(MSIX + 2).unwrap();
        self.function.write_config(at, &control.to_le_bytes());
    }

    fn poke(&mut self, address: u64, data: &[u8]) {
        assert!(matches!(self.mmio.write(address, data), Outcome::Done));
    }

    /// A register of MSI-X, which is 4 bytes wide.
    fn peek32(&mut self, address: u64) -> u32 {
        let mut bytes = [0; 4];
        assert!(matches!(self.mmio.read(address, &mut bytes), Outcome::Done));
        u32::from_le_bytes(bytes)
    }

    fn peek(&mut self, address: u64) -> Option<u8> {
        let mut byte = [0];
        let outcome = self.mmio.read(address, &mut byte);
        matches!(outcome, Outcome::Done)
            .then_some(byte)
            .map(|[byte]| byte)
    }
}

#[test]
fn accesses_to_a_bar_reach_the_device() {
    let mut machine = Machine::new();
    assert_eq!(
        (
            machine.peek(0xe000_0000),
            machine.peek(0xe000_3fff),
            machine.peek(0xe000_4000)
        ),
        (Some(0x50), Some(0x50), None)
    );
    machine.poke(0xe000_0010, &[1, 2, 3, 4]);
    assert_eq!(
        machine.device.contents(RegionIndex::Bar(0)).get(0x10..0x14),
        Some(&[1, 2, 3, 4][..])
    );
    machine.command(4);
    assert_eq!(machine.peek(0xe000_0000), None);
    // The device goes on decoding: its own bit is the host's.
    let command = machine.device.contents(RegionIndex::Config).get(4).copied();
    assert_eq!(command, Some(0x07));
}

#[test]
fn the_msix_table_is_trapped_and_never_reaches_the_device() {
    let mut machine = Machine::new();
    machine.poke(0xd000_0000, &0xfee0_1000_u64.to_le_bytes());
    machine.poke(0xd000_0008, &0x41_u64.to_le_bytes());
    assert_eq!(machine.peek32(0xd000_0000), 0xfee0_1000);
    assert_eq!(
        machine.device.contents(RegionIndex::Bar(3)),
        vec![0x53; 0x4000]
    );
    // Behind the table's three entries the device answers; across its end nobody does.
    assert_eq!(machine.peek(0xd000_0030), Some(0x53));
    let mut across = [0; 8];
    assert!(!matches!(
        machine.mmio.read(0xd000_002c, &mut across),
        Outcome::Done
    ));
    assert_eq!(machine.peek32(0xd000_2000), 0);
    assert_eq!(machine.function.mappable(0), vec![0..0x4000; 1]);
    assert_eq!(
        machine.function.mappable(3),
        [0x1000..0x2000, 0x3000..0x4000]
    );
}

#[test]
fn vectors_are_connected_while_the_guest_enables_them() {
    let mut machine = Machine::new();
    assert_eq!(machine.device.connected(Interrupt::Msix), 0);
    machine.poke(0xd000_0010, &0xfee0_1000_u64.to_le_bytes());
    machine.poke(0xd000_0018, &0x42_u64.to_le_bytes());
    machine.msix(0x8000);
    assert_eq!(machine.device.connected(Interrupt::Msix), 3);
    assert!(machine.device.fire(Interrupt::Msix, 1));
    let delivered: Vec<_> = machine
        .router
        .take()
        .iter()
        .map(|message| (message.requester, message.address, message.data))
        .collect();
    assert_eq!(delivered, [(RequesterId(0x100), 0xfee0_1000, 0x42)]);
    // Masked it stays pending, and the pending bit shows it.
    machine.poke(0xd000_001c, &1_u32.to_le_bytes());
    machine.device.fire(Interrupt::Msix, 1);
    assert_eq!(
        (machine.router.take().len(), machine.peek32(0xd000_2000)),
        (0, 2)
    );
    machine.poke(0xd000_001c, &0_u32.to_le_bytes());
    assert_eq!(machine.router.take().len(), 1);
    // Without bus mastering nothing is sent.
    machine.command(2);
    machine.device.fire(Interrupt::Msix, 1);
    assert_eq!(machine.router.take().len(), 0);
    machine.msix(0);
    assert_eq!(machine.device.connected(Interrupt::Msix), 0);
}

#[test]
fn a_function_level_reset_reaches_the_device_once() {
    let machine = Machine::new();
    machine.msix(0x8000);
    machine.function.write_config(
        u16::try_from(EXPRESS + 8).unwrap(),
        &0x8000_u16.to_le_bytes(),
    );
    assert_eq!(
        (
            machine.device.resets(),
            machine.device.connected(Interrupt::Msix)
        ),
        (1, 0)
    );
    let mut command = [0; 2];
    machine.function.read_config(4, &mut command);
    assert_eq!(command, [0, 0]);
    machine.function.reset();
    assert_eq!(machine.device.resets(), 2);
}

#[test]
fn the_pin_and_errors_signal_eventfds() {
    let machine = Machine::new();
    let [trigger, resample, error] = std::array::from_fn(|_| EventFd::new(EFD_NONBLOCK).unwrap());
    machine.function.connect_intx(&trigger, &resample).unwrap();
    machine.function.connect_error(&error).unwrap();
    assert!(machine.device.resampled());
    assert!(machine.device.fire(Interrupt::Intx, 0) && machine.device.fire(Interrupt::Error, 0));
    assert_eq!((trigger.read().unwrap(), error.read().unwrap()), (1, 1));
}

#[test]
fn what_a_device_refuses_is_remembered() {
    let (pio, mmio) = (
        Bus::new(AddressSpace::Pio).unwrap(),
        Bus::new(AddressSpace::Mmio).unwrap(),
    );
    let decoder = Decoder::new(pio, mmio);
    let router = RecordingRouter::new();
    // The device says that it has three vectors and takes two.
    let device = Arc::new(device(config()).vectors(Interrupt::Msix, 2));
    let function = AssignedFunction::new(device, Policy::default(), &decoder, &router).unwrap();
    assert!(!function.take_failure());
    function.write_config(u16::try_from(MSIX + 2).unwrap(), &0x8000_u16.to_le_bytes());
    assert!(function.take_failure() && !function.take_failure());
}

#[test]
fn all_offsets_and_widths_are_answered() {
    let machine = Machine::new();
    for offset in (0..4096_u16).chain([4096, 8000, u16::MAX]) {
        for width in [1, 2, 4, 8] {
            let mut data = vec![0x5a; width];
            machine.function.read_config(offset, &mut data);
            let beyond = (usize::from(offset) + width)
                .saturating_sub(4096)
                .min(width);
            assert!(data.iter().rev().take(beyond).all(|&byte| byte == 0xff));
        }
    }
    assert!(!machine.function.take_failure());
}

/// What the device lets be mapped is shown where the guest has the BARs, without the pages of the MSI-X table and pending bits.
#[test]
fn windows_follow_the_bars() {
    let machine = Machine::new();
    let windows = FakeWindows::default();
    machine.command(0);
    assert_eq!(machine.function.show_bars(&windows).unwrap(), 3);
    assert_eq!(windows.shown(), []);
    machine.command(2);
    let rest = [(0xd000_1000, 0x1000), (0xd000_3000, 0x1000)];
    let both = |base| [&[(base, 0x4000)][..], &rest].concat();
    assert_eq!(windows.shown(), both(0xe000_0000));
    machine
        .function
        .write_config(0x10, &0xe100_0000_u32.to_le_bytes());
    assert_eq!(windows.shown(), both(0xe100_0000));
    // Over the other BAR, where that one answers.
    machine
        .function
        .write_config(0x10, &0xd000_0000_u32.to_le_bytes());
    assert_eq!(windows.shown(), rest);
    machine
        .function
        .write_config(0x10, &0xe000_0000_u32.to_le_bytes());
    assert_eq!(windows.shown(), both(0xe000_0000));
    machine.function.reset();
    assert_eq!(windows.shown(), []);
}

#[test]
fn what_cannot_be_shown_exits_and_is_remembered() {
    let mut machine = Machine::new();
    let windows = FakeWindows::default();
    machine.command(0);
    machine.function.show_bars(&windows).unwrap();
    windows.refuse();
    assert!(!machine.function.take_failure());
    machine.command(2);
    assert_eq!(windows.shown(), []);
    assert!(machine.function.take_failure());
    assert_eq!(machine.peek(0xe000_0000), Some(0x50));
}
