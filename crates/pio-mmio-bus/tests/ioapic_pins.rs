//! The I/O APIC as an operating system drives it (82093AA data sheet; EOI register as in the ICH9's).
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use pio_mmio_bus::bus::{AccessError, BusDevice};
use pio_mmio_bus::interrupt::{
    EndObserver, Ioapic, IoapicPinState, IoapicState, IoapicStateError, IrqLine, MsiMessage,
    RecordingRouter,
};
use pio_mmio_bus::pci::RequesterId;
use proptest::prelude::*;

const REQUESTER: RequesterId = RequesterId(0xf8ff);
const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;

struct Fixture {
    router: RecordingRouter,
    ioapic: Arc<Ioapic>,
    lines: Vec<Arc<dyn IrqLine>>,
}

impl Fixture {
    fn new() -> Self {
        let router = RecordingRouter::new();
        let ioapic = Ioapic::new(REQUESTER, &router).unwrap();
        let lines = (0..24).map(|pin| ioapic.line(pin).unwrap()).collect();
        Self {
            router,
            ioapic,
            lines,
        }
    }

    fn read(&self, register: u8) -> u32 {
        self.ioapic
            .write(0, &u32::from(register).to_le_bytes())
            .unwrap();
        let mut bytes = [0; 4];
        self.ioapic.read(0x10, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn write(&self, register: u8, value: u32) {
        self.ioapic
            .write(0, &u32::from(register).to_le_bytes())
            .unwrap();
        self.ioapic.write(0x10, &value.to_le_bytes()).unwrap();
    }

    fn entry(&self, pin: u8) -> u64 {
        u64::from(self.read(0x11 + 2 * pin)) << 32 | u64::from(self.read(0x10 + 2 * pin))
    }

    /// Upper half first, as software does so that no half-written entry is unmasked.
    fn set_entry(&self, pin: u8, entry: u64) {
        self.write(0x11 + 2 * pin, (entry >> 32) as u32);
        self.write(0x10 + 2 * pin, entry as u32);
    }

    /// The data of the messages delivered since the last call.
    fn sent(&self) -> Vec<u32> {
        self.router
            .take()
            .into_iter()
            .map(|message| message.data)
            .collect()
    }
}

#[test]
fn registers_after_reset() {
    let f = Fixture::new();
    assert_eq!(f.read(0), 0);
    assert_eq!(f.read(1), 0x0017_0020);
    f.write(0, u32::MAX);
    f.write(1, u32::MAX);
    f.write(2, 0);
    assert_eq!(f.read(0), 0x0f00_0000);
    assert_eq!(f.read(1), 0x0017_0020);
    assert_eq!(f.read(2), 0x0f00_0000);
    for pin in 0..24 {
        assert_eq!(f.entry(pin), MASKED);
        f.set_entry(pin, u64::MAX);
        assert_eq!(f.entry(pin), 0xffff_0000_0001_afff);
    }
    for register in (3..0x10).chain(0x40..=0xff) {
        f.write(register, u32::MAX);
        assert_eq!(f.read(register), 0, "{register:#x}");
    }
    assert!(f.ioapic.line(24).is_none());
}

#[test]
fn offsets_and_widths() {
    let f = Fixture::new();
    for width in 0..=8_usize {
        for offset in 0..=Ioapic::SIZE {
            let read = f.ioapic.read(offset, &mut vec![0; width]);
            let write = f.ioapic.write(offset, &vec![0; width]);
            assert_eq!(read.is_ok(), width == 4 && [0, 0x10].contains(&offset));
            assert_eq!(
                write.is_ok(),
                width == 4 && [0, 0x10, 0x40].contains(&offset)
            );
            if let Err(error) = read {
                assert!(matches!(
                    error,
                    AccessError::Width { .. } | AccessError::NoRegister { .. }
                ));
            }
        }
    }
}

#[test]
fn an_edge_sends_once_and_is_lost_while_masked() {
    let f = Fixture::new();
    f.set_entry(4, 0x0300_0000_0000_0031);
    f.lines[4].set_level(true);
    f.lines[4].set_level(true);
    assert_eq!(
        f.router.take(),
        [MsiMessage {
            requester: REQUESTER,
            address: 0xfee0_3000,
            data: 0x31
        }]
    );
    f.lines[4].set_level(false);
    f.lines[4].pulse();
    assert_eq!(f.sent(), [0x31]);
    f.set_entry(4, MASKED | 0x31);
    f.lines[4].pulse();
    f.set_entry(4, 0x31);
    assert_eq!(f.sent(), []);
    assert_eq!(f.entry(4), 0x31);
}

#[test]
fn a_level_sends_again_after_each_end_until_it_falls() {
    let f = Fixture::new();
    f.set_entry(10, LEVEL | 0x41);
    f.lines[10].set_level(true);
    assert_eq!(f.sent(), [0xc041]);
    assert_eq!(f.entry(10), LEVEL | REMOTE_IRR | 0x41);
    f.lines[10].set_level(false);
    f.lines[10].set_level(true);
    assert_eq!(f.sent(), [], "not ended yet");
    f.ioapic.eoi(0x40);
    assert_eq!(f.sent(), [], "another vector");
    f.ioapic.eoi(0x41);
    assert_eq!(f.sent(), [0xc041]);
    f.lines[10].set_level(false);
    f.ioapic.write(0x40, &0x41_u32.to_le_bytes()).unwrap();
    assert_eq!(f.sent(), []);
    assert_eq!(f.entry(10), LEVEL | 0x41);
}

#[test]
fn a_masked_level_waits() {
    let f = Fixture::new();
    f.set_entry(10, MASKED | LEVEL | 0x41);
    f.lines[10].set_level(true);
    assert_eq!(f.sent(), []);
    f.set_entry(10, LEVEL | 0x41);
    assert_eq!(f.sent(), [0xc041]);
    // Masked while in service: the end comes, nothing is sent, until it is unmasked.
    f.set_entry(10, MASKED | LEVEL | 0x41);
    assert_eq!(f.entry(10), MASKED | LEVEL | REMOTE_IRR | 0x41);
    f.ioapic.eoi(0x41);
    assert_eq!(f.sent(), []);
    f.set_entry(10, LEVEL | 0x41);
    assert_eq!(f.sent(), [0xc041]);
}

/// Linux ends an interrupt of an I/O APIC without an EOI register this way (`__eoi_ioapic_pin`).
#[test]
fn edge_mode_for_a_moment_ends_an_interrupt() {
    let f = Fixture::new();
    f.set_entry(10, LEVEL | 0x41);
    f.lines[10].set_level(true);
    assert_eq!(f.sent(), [0xc041]);
    f.set_entry(10, MASKED | 0x41);
    assert_eq!(f.entry(10), MASKED | 0x41);
    f.set_entry(10, LEVEL | 0x41);
    assert_eq!(f.sent(), [0xc041]);
}

/// Who asserts a line at an edge, and deasserts it at the end of the interrupt.
struct Resampled(Arc<dyn IrqLine>, AtomicUsize);

impl EndObserver for Resampled {
    fn ended(&self) {
        self.0.set_level(false);
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn an_observer_deasserts_before_the_pin_sends_again() {
    let f = Fixture::new();
    let observer = Arc::new(Resampled(f.lines[10].clone(), AtomicUsize::new(0)));
    let told = || observer.1.load(Ordering::Relaxed);
    let weak: Weak<Resampled> = Arc::downgrade(&observer);
    f.ioapic.observe(10, weak);
    f.set_entry(10, LEVEL | 0x41);
    f.set_entry(11, LEVEL | 0x42);
    f.lines[10].set_level(true);
    f.lines[11].set_level(true);
    assert_eq!(f.sent(), [0xc041, 0xc042]);
    f.ioapic.eoi(0x42);
    assert_eq!((told(), f.sent()), (0, vec![0xc042]), "another pin");
    f.ioapic.eoi(0x41);
    assert_eq!((told(), f.sent()), (1, vec![]));
    f.ioapic.eoi(0x41);
    assert_eq!(told(), 1, "nothing was in service");
    f.lines[10].set_level(true);
    f.ioapic.write(0x40, &0x41_u32.to_le_bytes()).unwrap();
    assert_eq!((told(), f.sent()), (2, vec![0xc041]));
    f.lines[10].set_level(true);
    f.set_entry(10, MASKED | 0x41);
    assert_eq!(told(), 3, "edge mode for a moment");
    f.set_entry(10, LEVEL | 0x41);
    assert_eq!(f.sent(), [0xc041]);
}

/// Interrupt remapping: a remappable entry becomes a remappable message (VT-d §5.1.2.2, §5.1.5.1).
#[test]
fn a_remappable_entry_becomes_a_remappable_message() {
    let f = Fixture::new();
    // Index 0x9234: its low 15 bits in 63:49, the top one in bit 11; bit 48 is the format.
    f.set_entry(1, 0x1234 << 49 | 1 << 48 | 1 << 11 | 0x55);
    f.lines[1].pulse();
    let message = f.router.take()[0];
    assert_eq!(message.address, 0xfee0_0000 | 0x1234 << 5 | 1 << 4 | 1 << 2);
    assert_eq!(message.data, 0x55);
}

#[test]
fn routes_can_run_out() {
    let router = RecordingRouter::with_limit(23);
    assert!(Ioapic::new(REQUESTER, &router).is_err());
}

/// A model of one pin, kept apart from the code: what it has sent is a count.
#[derive(Clone, Copy, Default)]
struct Model {
    entry: u64,
    asserted: bool,
}

impl Model {
    fn serve(&mut self, rises: bool) -> bool {
        let level = self.entry & LEVEL != 0;
        let due = if level {
            self.asserted && self.entry & REMOTE_IRR == 0
        } else {
            rises
        };
        let sends = due && self.entry & MASKED == 0;
        if sends && level {
            self.entry |= REMOTE_IRR;
        }
        sends
    }
}

#[derive(Clone, Debug)]
enum Step {
    Entry(u8, u64),
    Low(u8, u32),
    Level(u8, bool),
    Eoi(u8),
    SaveRestore,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let pin = 0..4_u8;
    let entry = (0..4_u64, any::<bool>(), any::<bool>(), any::<u16>()).prop_map(
        |(vector, level, masked, destination)| {
            let flag = |set, flag| if set { flag } else { 0 };
            let flags = flag(level, LEVEL) | flag(masked, MASKED);
            (0x30 + vector) | flags | u64::from(destination) << 48
        },
    );
    prop::collection::vec(
        prop_oneof![
            (pin.clone(), entry).prop_map(|(pin, entry)| Step::Entry(pin, entry)),
            (pin.clone(), any::<u32>()).prop_map(|(pin, low)| Step::Low(pin, low)),
            (pin, any::<bool>()).prop_map(|(pin, level)| Step::Level(pin, level)),
            (0x2f..0x35_u8).prop_map(Step::Eoi),
            Just(Step::SaveRestore),
        ],
        1..60,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn pins_behave_as_the_model(steps in steps()) {
        let mut f = Fixture::new();
        let mut model = [Model { entry: MASKED, asserted: false }; 24];
        for step in steps {
            let mut expected = 0;
            match step {
                Step::Entry(pin, entry) => {
                    // Masked first, so that one write decides.
                    for low in [entry | MASKED, entry] {
                        let pin_model = &mut model[usize::from(pin)];
                        pin_model.entry = low & 0xffff_0000_0001_afff | pin_model.entry & REMOTE_IRR;
                        if low & LEVEL == 0 {
                            pin_model.entry &= !REMOTE_IRR;
                        }
                        expected += usize::from(pin_model.serve(false));
                        f.write(0x10 + 2 * pin, low as u32);
                        f.write(0x11 + 2 * pin, (low >> 32) as u32);
                    }
                }
                Step::Low(pin, low) => {
                    let pin_model = &mut model[usize::from(pin)];
                    let kept = pin_model.entry & (0xffff_ffff_0000_0000 | REMOTE_IRR);
                    pin_model.entry = u64::from(low) & 0x1_afff | kept;
                    if pin_model.entry & LEVEL == 0 {
                        pin_model.entry &= !REMOTE_IRR;
                    }
                    expected += usize::from(pin_model.serve(false));
                    f.write(0x10 + 2 * pin, low);
                }
                Step::Level(pin, asserted) => {
                    let pin_model = &mut model[usize::from(pin)];
                    let rises = asserted && !pin_model.asserted;
                    pin_model.asserted = asserted;
                    expected += usize::from(pin_model.serve(rises));
                    f.lines[usize::from(pin)].set_level(asserted);
                }
                Step::Eoi(vector) => {
                    for pin in &mut model {
                        if pin.entry as u8 == vector && pin.entry & REMOTE_IRR != 0 {
                            pin.entry &= !REMOTE_IRR;
                            expected += usize::from(pin.serve(false));
                        }
                    }
                    f.ioapic.eoi(vector);
                }
                Step::SaveRestore => {
                    let state = f.ioapic.save();
                    f = Fixture::new();
                    f.ioapic.restore(&state).unwrap();
                    prop_assert_eq!(f.ioapic.save(), state);
                }
            }
            prop_assert_eq!(f.sent().len(), expected);
            for (pin, model) in (0..4).zip(model) {
                prop_assert_eq!(f.entry(pin), model.entry);
            }
        }
    }

    /// Snapshot bytes (CVE-2023-50711): what is accepted reads back, what is refused changes nothing.
    #[test]
    fn hostile_saved_state(
        entries in prop::collection::vec(prop_oneof![any::<u64>(), 0..0x1_0000_u64], 22..26),
        select: u8,
        id in prop_oneof![Just(0x0500_0000), any::<u32>()],
        asserted: bool,
    ) {
        let f = Fixture::new();
        let fresh = f.ioapic.save();
        let pins = entries.iter().map(|&entry| IoapicPinState { entry, asserted }).collect();
        let state = IoapicState { select, id, pins };
        match f.ioapic.restore(&state) {
            Ok(()) => {
                for (saved, restored) in state.pins.iter().zip(f.ioapic.save().pins) {
                    prop_assert_eq!(saved.entry & !REMOTE_IRR, restored.entry & !REMOTE_IRR);
                }
            }
            Err(error) => {
                prop_assert_eq!(entries.len() != 24, matches!(error, IoapicStateError::Pins(_)));
                prop_assert_eq!(f.ioapic.save(), fresh);
            }
        }
        f.write(select, u32::MAX);
        f.ioapic.eoi(0);
    }
}
