//! A device of VFIO on a guest's bus, over the fake of the seam.
#![expect(clippy::unwrap_used, reason = "test code")]

mod vf;

use std::sync::Arc;

use pio_mmio_bus::bus::{AddressSpace, Bus, BusReader, Outcome};
use pio_mmio_bus::interrupt::RecordingRouter;
use pio_mmio_bus::pci::{Decoder, InterruptPin, PciFunction, RequesterId};
use sriov_vfio::vfio::fake::{FakeDevice, FakeWindows};
use sriov_vfio::vfio::{AssignedFunction, Interrupt, Notice, Policy, RegionIndex};
use vf::{EXPRESS, MSI, MSIX, config, device, put};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

struct Machine {
    mmio: BusReader,
    router: RecordingRouter,
    device: Arc<FakeDevice>,
    function: Arc<AssignedFunction>,
}

impl Machine {
    fn new() -> Self {
        Self::with(device(config()), Policy::default())
    }

    fn with(device: FakeDevice, policy: Policy) -> Self {
        let (pio, mmio) = (
            Bus::new(AddressSpace::Pio).unwrap(),
            Bus::new(AddressSpace::Mmio).unwrap(),
        );
        let decoder = Decoder::new(pio, mmio.clone());
        let router = RecordingRouter::new();
        let device = Arc::new(device);
        let function = AssignedFunction::new(device.clone(), policy, &decoder, &router).unwrap();
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

    fn msi(&self, control: u16) {
        let at = u16::try_from(MSI + 2).unwrap();
        self.function.write_config(at, &control.to_le_bytes());
    }

    /// Unmasks a vector of MSI-X, by a write of its own.
    fn unmask(&mut self, vector: u64) {
        self.poke(0xd000_000c + 16 * vector, &0_u32.to_le_bytes());
    }

    /// Address and data of what was delivered since the last call.
    fn take(&mut self) -> Vec<(u64, u32)> {
        let messages = self.router.take().into_iter();
        messages
            .map(|message| (message.address, message.data))
            .collect()
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
    assert_eq!(machine.device.connected(Interrupt::Msix), 1);
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
    let mut machine = Machine::new();
    machine.msix(0x8000);
    machine.unmask(0);
    assert_eq!(machine.device.connected(Interrupt::Msix), 1);
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

/// What the guest sees of a pin that VFIO masks: triggers, and unmasks at its ends of interrupts.
struct Pin {
    trigger: EventFd,
    resample: EventFd,
}

impl Pin {
    fn of(machine: &Machine) -> Self {
        let [trigger, resample] = std::array::from_fn(|_| EventFd::new(EFD_NONBLOCK).unwrap());
        machine.function.connect_intx(&trigger, &resample).unwrap();
        Self { trigger, resample }
    }

    fn triggered(&self) -> bool {
        self.trigger.read().is_ok()
    }
}

const WITH_PIN: Policy = Policy {
    identity: None,
    intx: true,
    sriov: false,
    ats: false,
    pasid: false,
    resizable_bar: false,
};

#[test]
fn the_pin_triggers_again_after_each_end_while_it_is_asserted() {
    let machine = Machine::with(device(config()), WITH_PIN);
    assert_eq!(machine.function.interrupt_pin(), Some(InterruptPin::A));
    let pin = Pin::of(&machine);
    machine.device.set_pin(true);
    assert!(pin.triggered() && !pin.triggered());
    machine.device.set_pin(false);
    machine.device.set_pin(true);
    assert!(!pin.triggered(), "masked until the guest is done");
    pin.resample.write(1).unwrap();
    assert!(machine.device.unmask_pin() && pin.triggered());
    machine.device.set_pin(false);
    pin.resample.write(1).unwrap();
    assert!(machine.device.unmask_pin() && !pin.triggered());
}

#[test]
fn a_pin_that_the_kernel_does_not_deliver_is_not_shown() {
    let machine = Machine::with(device(config()).vectors(Interrupt::Intx, 0), WITH_PIN);
    assert_eq!(machine.function.interrupt_pin(), None);
    let [trigger, resample] = std::array::from_fn(|_| EventFd::new(EFD_NONBLOCK).unwrap());
    assert!(machine.function.connect_intx(&trigger, &resample).is_err());
}

/// The kernel refuses one kind while another is connected.
#[test]
fn one_kind_of_interrupt_is_connected_at_a_time() {
    let mut machine = Machine::with(device(config()), WITH_PIN);
    for vector in 0..3 {
        machine.unmask(vector);
    }
    let pin = Pin::of(&machine);
    let connected = || {
        let kinds = [Interrupt::Intx, Interrupt::Msi, Interrupt::Msix];
        kinds.map(|kind| machine.device.connected(kind))
    };
    assert_eq!(connected(), [1, 0, 0]);
    machine.msix(0x8000);
    assert_eq!(connected(), [0, 0, 3]);
    // Both at once is the guest's mistake (PCIe §6.1.4): MSI-X it is.
    machine.msi(1);
    assert_eq!(connected(), [0, 0, 3]);
    machine.msix(0);
    assert_eq!(connected(), [0, 1, 0]);
    machine.msi(0);
    assert_eq!(connected(), [1, 0, 0]);
    // It fires again if it is asserted by then.
    machine.device.set_pin(true);
    assert!(pin.triggered());
    machine.msi(1);
    machine.msi(0);
    assert!(pin.triggered());
    // After a reset it is not masked.
    machine.function.reset();
    assert_eq!(connected(), [1, 0, 0]);
    assert!(pin.triggered() && !machine.function.take_failure());
}

#[test]
fn messages_of_msi_reach_the_guest() {
    let mut machine = Machine::new();
    let at = |offset: usize| u16::try_from(MSI + offset).unwrap();
    machine
        .function
        .write_config(at(4), &0xfee0_2000_u64.to_le_bytes());
    machine.function.write_config(at(12), &[0x51, 0]);
    machine.msi(1);
    assert!(machine.device.fire(Interrupt::Msi, 0));
    assert_eq!(machine.take(), [(0xfee0_2000, 0x51)]);
    // Masked it stays pending, and the pending bit shows it.
    machine.function.write_config(at(16), &[1]);
    machine.device.fire(Interrupt::Msi, 0);
    let mut pending = [0; 4];
    machine.function.read_config(at(20), &mut pending);
    assert_eq!((machine.take().len(), pending), (0, [1, 0, 0, 0]));
    machine.function.write_config(at(16), &[0]);
    machine.function.read_config(at(20), &mut pending);
    assert_eq!((machine.take().len(), pending), (1, [0; 4]));
    // Without bus mastering nothing is sent.
    machine.command(2);
    machine.device.fire(Interrupt::Msi, 0);
    assert_eq!(machine.take(), []);
    machine.msi(0);
    assert_eq!(machine.device.connected(Interrupt::Msi), 0);
}

/// Four vectors with 32-bit addresses, of which the host has two.
#[test]
fn as_many_vectors_of_msi_are_shown_as_the_host_has() {
    let mut config = config();
    put(&mut config, MSI + 2, &[0x04, 0]);
    let device = device(config).vectors(Interrupt::Msi, 2);
    let mut machine = Machine::with(device, Policy::default());
    let at = |offset: usize| u16::try_from(MSI + offset).unwrap();
    let mut control = [0; 2];
    machine.function.read_config(at(2), &mut control);
    assert_eq!(
        (control, machine.device.connected(Interrupt::Msi)),
        ([0x02, 0], 0)
    );
    machine
        .function
        .write_config(at(4), &0xfee0_2000_u32.to_le_bytes());
    machine.function.write_config(at(8), &[0x60, 0]);
    // Granted one, then both, without a pause: the kernel has to be told anew.
    machine.msi(0x01);
    assert_eq!(machine.device.connected(Interrupt::Msi), 1);
    machine.msi(0x11);
    assert!(machine.device.fire(Interrupt::Msi, 0) && machine.device.fire(Interrupt::Msi, 1));
    assert_eq!(machine.take(), [(0xfee0_2000, 0x60), (0xfee0_2000, 0x61)]);
    // What a guest grants beyond is nothing.
    machine.msi(0x71);
    assert_eq!(machine.device.connected(Interrupt::Msi), 2);
    assert!(!machine.function.take_failure());
}

#[test]
fn notices_signal_eventfds_whatever_else_is_connected() {
    let machine = Machine::new();
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let connected = |notice| machine.function.connect_notice(notice, &event).unwrap();
    // It has errors to tell of, and nobody asks for it.
    assert_eq!(
        [Notice::Error, Notice::Request].map(connected),
        [true, false]
    );
    machine.msix(0x8000);
    assert!(machine.device.fire(Interrupt::Error, 0));
    assert_eq!(event.read().unwrap(), 1);
    machine.function.reset();
    assert!(machine.device.fire(Interrupt::Error, 0) && !machine.function.take_failure());
}

#[test]
fn what_a_device_refuses_is_remembered() {
    let (pio, mmio) = (
        Bus::new(AddressSpace::Pio).unwrap(),
        Bus::new(AddressSpace::Mmio).unwrap(),
    );
    let decoder = Decoder::new(pio, mmio.clone());
    let router = RecordingRouter::new();
    // The device says that it has three vectors and takes two.
    let device = Arc::new(device(config()).vectors(Interrupt::Msix, 2));
    let function = AssignedFunction::new(device, Policy::default(), &decoder, &router).unwrap();
    assert!(!function.take_failure());
    function.write_config(0x1c, &0xd000_0000_u32.to_le_bytes());
    function.write_config(4, &[6, 0]);
    let mut guest = mmio.reader();
    let mut unmask = |vector: u64| {
        let unmasked = guest.write(0xd000_000c + 16 * vector, &[0; 4]);
        assert!(matches!(unmasked, Outcome::Done));
    };
    unmask(1);
    function.write_config(u16::try_from(MSIX + 2).unwrap(), &0x8000_u16.to_le_bytes());
    assert!(!function.take_failure());
    unmask(2);
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
