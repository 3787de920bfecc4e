//! The interrupt pin of an assigned function through an I/O APIC in user space, with the fake of VFIO: that of the kernel is for the lab.
#![expect(clippy::unwrap_used, reason = "test code")]

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use pio_mmio_bus::bus::{AddressSpace, Bus, BusDevice};
use pio_mmio_bus::interrupt::{Ioapic, IrqLine, RecordingRouter};
use pio_mmio_bus::pci::{Decoder, InterruptPin, IntxLines, RequesterId};
use reference_vmm::irq::{ResampledPin, intx_gsi};
use sriov_vfio::vfio::fake::FakeDevice;
use sriov_vfio::vfio::{AssignedFunction, Interrupt, Policy};

const DEVICE: u8 = 24;
const VECTOR: u8 = 0x41;
/// What a level-triggered pin with that vector sends.
const SENT: u32 = 0xc041;

struct Machine {
    router: RecordingRouter,
    ioapic: Arc<Ioapic>,
    lines: IntxLines,
}

impl Machine {
    fn new() -> Self {
        let router = RecordingRouter::new();
        let ioapic = Ioapic::new(RequesterId(0xff00), &router).unwrap();
        let line = |pin| ioapic.line(intx_gsi(0, pin).try_into().unwrap()).unwrap();
        let lines = IntxLines::new([line(0), line(1), line(2), line(3)]);
        let gsi = intx_gsi(DEVICE, 0);
        for (register, value) in [(1, 0), (0, 1 << 15 | u32::from(VECTOR))] {
            let select = 0x10 + 2 * gsi + register;
            ioapic.write(0, &select.to_le_bytes()).unwrap();
            ioapic.write(0x10, &u32::to_le_bytes(value)).unwrap();
        }
        Self {
            router,
            ioapic,
            lines,
        }
    }

    fn sent(&self) -> Vec<u32> {
        let messages = self.router.take().into_iter();
        messages.map(|message| message.data).collect()
    }

    /// Waits for what a thread has to do first.
    fn sends(&self) -> bool {
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            match &self.sent()[..] {
                [] => thread::sleep(Duration::from_millis(1)),
                sent => return sent == [SENT],
            }
        }
        false
    }
}

#[test]
fn a_pin_is_asserted_until_the_guest_ends_its_interrupt() {
    let machine = Machine::new();
    let mut config = vec![0; 256];
    config[0x3d] = 1;
    let device = Arc::new(FakeDevice::new(config).vectors(Interrupt::Intx, 1));
    let bus = |space| Bus::new(space).unwrap();
    let decoder = Decoder::new(bus(AddressSpace::Pio), bus(AddressSpace::Mmio));
    let policy = Policy {
        intx: true,
        ..Policy::default()
    };
    let function =
        AssignedFunction::new(device.clone(), policy, &decoder, &machine.router).unwrap();
    let pin = function.interrupt_pin().unwrap();
    let pin = ResampledPin::of_user(&machine.ioapic, &machine.lines, DEVICE, pin).unwrap();
    function
        .connect_intx(pin.trigger(), pin.resample())
        .unwrap();

    device.set_pin(true);
    assert!(machine.sends());
    // The guest ended it, and the device still asserts.
    machine.ioapic.eoi(VECTOR);
    assert!(device.unmask_pin() && machine.sends());
    device.set_pin(false);
    machine.ioapic.eoi(VECTOR);
    assert!(device.unmask_pin());
    machine.ioapic.eoi(VECTOR);
    assert!(!device.unmask_pin() && machine.sent().is_empty());
}

#[test]
fn functions_share_a_line() {
    let machine = Machine::new();
    let ours = ResampledPin::of_user(&machine.ioapic, &machine.lines, DEVICE, InterruptPin::A);
    let ours = ours.unwrap();
    let other = machine.lines.pin(DEVICE - 4, InterruptPin::A);
    other.set_level(true);
    assert_eq!(machine.sent(), [SENT]);
    // The end of the other's interrupt unmasks nothing of ours.
    machine.ioapic.eoi(VECTOR);
    assert_eq!(
        (machine.sent(), ours.resample().read().is_err()),
        (vec![SENT], true)
    );
    ours.trigger().write(1).unwrap();
    other.set_level(false);
    machine.ioapic.eoi(VECTOR);
    // Asserted before or after that end, it is sent once in all.
    assert!(ours.resample().read().is_ok() || machine.sends());
}

#[test]
fn a_pin_that_is_gone_asserts_nothing() {
    let machine = Machine::new();
    let pin = ResampledPin::of_user(&machine.ioapic, &machine.lines, DEVICE, InterruptPin::A);
    let pin = pin.unwrap();
    let trigger = pin.trigger().try_clone().unwrap();
    trigger.write(1).unwrap();
    assert!(machine.sends());
    drop(pin);
    trigger.write(1).unwrap();
    machine.ioapic.eoi(VECTOR);
    assert!(machine.sent().is_empty());
}
