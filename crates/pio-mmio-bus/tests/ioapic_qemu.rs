//! The I/O APIC beside QEMU's: the same register accesses, levels and ends of interrupts to both.

use pio_mmio_bus::bus::BusDevice;
use pio_mmio_bus::interrupt::{Ioapic, IrqLine, RecordingRouter};
use pio_mmio_bus::pci::RequesterId;
use qtest::{Qemu, if_installed};

/// The pins that nothing else in QEMU's machine drives.
const FIRST: usize = 16;
const PINS: usize = 8;

#[test]
fn pins_behave_as_qemus() {
    let Some(mut theirs) = if_installed(Qemu::stopped("")) else {
        return;
    };
    let ours = Ioapic::new(RequesterId(0), &RecordingRouter::new()).unwrap();
    let write = |theirs: &mut Qemu, offset: u64, value: u32| {
        ours.write(offset, &value.to_le_bytes()).unwrap();
        theirs.tell(&format!("writel {:#x} {value:#x}", Ioapic::BASE + offset));
    };
    let set = |theirs: &mut Qemu, pin: usize, level: bool| {
        ours.line(FIRST + pin).unwrap().set_level(level);
        let (pin, level) = (FIRST + pin, u8::from(level));
        theirs.tell(&format!(
            "set_irq_in /machine/q35/ioapic unnamed-gpio-in {pin} {level}"
        ));
    };
    let mut numbers = fastrand::Rng::with_seed(4);
    let mut level_triggered = [false; PINS];
    let mut pending = 0;
    for _ in 0..1000 {
        let pin = usize::try_from(numbers.u64(..PINS as u64)).unwrap();
        let select = u32::try_from(0x10 + 2 * (FIRST + pin)).unwrap();
        match numbers.u64(..8) {
            0 | 1 => {
                // A fixed interrupt with one of four vectors, any other bits. QEMU looks at a line's level only when it changes, so
                // it is low while the trigger mode changes.
                let level = numbers.u64(..4) != 0;
                let mode = level_triggered.get_mut(pin).unwrap();
                if *mode != level {
                    set(&mut theirs, pin, false);
                }
                *mode = level;
                let random = u32::try_from(numbers.u64(..) & 0x7800).unwrap();
                let vector = 0x30 + u32::try_from(numbers.u64(..4)).unwrap();
                let masked = u32::from(numbers.u64(..3) == 0) << 16;
                write(&mut theirs, 0, select);
                write(
                    &mut theirs,
                    0x10,
                    random | vector | masked | u32::from(level) << 15,
                );
            }
            2 => {
                let destination = u32::try_from(numbers.u64(..) & 0xff00_0000).unwrap();
                write(&mut theirs, 0, select + 1);
                write(&mut theirs, 0x10, destination);
            }
            3 | 4 => {
                let vector = 0x30 + u32::try_from(numbers.u64(..5)).unwrap();
                write(&mut theirs, 0x40, vector);
            }
            _ => set(&mut theirs, pin, numbers.u64(..2) == 0),
        }
        for register in [0, 1, 2].into_iter().chain(0x10 + 2 * 16..0x40_u32) {
            write(&mut theirs, 0, register);
            let mut bytes = [0; 4];
            ours.read(0x10, &mut bytes).unwrap();
            let value = u64::from(u32::from_le_bytes(bytes));
            let window = Ioapic::BASE + 0x10;
            assert_eq!(
                value,
                theirs.number(&format!("readl {window:#x}")),
                "{register:#x}"
            );
            pending += usize::from(register >= 0x10 && value & (1 << 14) != 0);
        }
    }
    assert!(pending > 500, "{pending}");
}
