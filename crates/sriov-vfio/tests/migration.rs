//! A function that is saved on one machine and goes on on another, over the fake of the seam: no device of the lab can be migrated.
#![expect(clippy::unwrap_used, reason = "test code")]

mod vf;

use std::sync::Arc;

use pio_mmio_bus::bus::{AddressSpace, Bus, BusReader, Outcome};
use pio_mmio_bus::interrupt::RecordingRouter;
use pio_mmio_bus::pci::{Decoder, PciFunction, RequesterId};
use proptest::prelude::*;
use sriov_vfio::vfio::fake::FakeDevice;
use sriov_vfio::vfio::{
    AssignedFunction, AssignedState, Interrupt, MigrationError, Policy, RegionIndex,
};
use vf::{MSIX, config, device};

/// More than the device has.
const LIMIT: usize = 1 << 20;

struct Machine {
    mmio: BusReader,
    router: RecordingRouter,
    device: Arc<FakeDevice>,
    function: Arc<AssignedFunction>,
}

impl Machine {
    fn new(device: FakeDevice) -> Self {
        let bus = |space| Bus::new(space).unwrap();
        let mmio = bus(AddressSpace::Mmio);
        let decoder = Decoder::new(bus(AddressSpace::Pio), mmio.clone());
        let router = RecordingRouter::new();
        let device = Arc::new(device);
        let function =
            AssignedFunction::new(device.clone(), Policy::default(), &decoder, &router).unwrap();
        function.set_requester(RequesterId(0x100));
        Self {
            mmio: mmio.reader(),
            router,
            device,
            function,
        }
    }

    /// Placed, running, with vector 1 pointed somewhere and masked, and a signal pending.
    fn used() -> Self {
        let mut machine = Self::new(device(config()).migratable());
        let write = |offset: usize, bytes: &[u8]| {
            let offset = u16::try_from(offset).unwrap();
            machine.function.write_config(offset, bytes);
        };
        write(0x10, &0xe000_0000_u32.to_le_bytes());
        write(0x1c, &0xd000_0000_u32.to_le_bytes());
        write(4, &[6, 0]);
        write(MSIX + 2, &[0, 0x80]);
        for (address, word) in [
            (0xe000_0010, 0x1234_5678),
            (0xd000_0010, 0xfee0_1000),
            (0xd000_0018, 0x42),
            (0xd000_001c, 0),
            (0xd000_001c, 1),
        ] {
            machine.poke(address, word);
        }
        assert!(machine.device.fire(Interrupt::Msix, 1));
        machine
    }

    fn poke(&mut self, address: u64, word: u32) {
        let written = self.mmio.write(address, &word.to_le_bytes());
        assert!(matches!(written, Outcome::Done));
    }

    fn peek(&mut self, address: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        let read = self.mmio.read(address, &mut bytes);
        matches!(read, Outcome::Done).then_some(u32::from_le_bytes(bytes))
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 4096];
        self.function.read_config(0, &mut config);
        config
    }

    fn sent(&self) -> Vec<u32> {
        let messages = self.router.take().into_iter();
        messages.map(|message| message.data).collect()
    }
}

#[test]
fn a_function_goes_on_elsewhere() {
    let mut source = Machine::used();
    let state = source.function.save(LIMIT).unwrap();
    assert!(!source.device.fire(Interrupt::Msix, 1), "it is stopped");
    let text = serde_json::to_string(&state).unwrap();
    let mut state: AssignedState = serde_json::from_str(&text).unwrap();
    // A driver in the kernel may leave the command register, in the last of the regions, to the VMM.
    let command = state.device.len() - 4096 + 4;
    state.device[command] = 3;

    let mut target = Machine::new(device(config()).migratable());
    target.function.restore(&state).unwrap();
    assert_eq!(target.config(), source.config());
    for address in [0xe000_0010, 0xd000_0010, 0xd000_0018, 0xd000_2000] {
        let there = target.peek(address);
        assert!(
            there.is_some() && there == source.peek(address),
            "{address:#x}"
        );
    }
    let command = target.device.contents(RegionIndex::Config).get(4).copied();
    assert_eq!(command, Some(0x07));
    assert!(!target.device.fire(Interrupt::Msix, 1), "not yet");
    target.function.set_running(true).unwrap();
    // What was pending is delivered there, once, and its vector signals from then on.
    assert_eq!(target.device.connected(Interrupt::Msix), 0);
    target.poke(0xd000_001c, 0);
    assert_eq!(target.device.connected(Interrupt::Msix), 1);
    assert_eq!(target.sent(), [0x42]);
    assert!(target.device.fire(Interrupt::Msix, 1));
    assert_eq!(
        (target.sent(), target.function.take_failure()),
        (vec![0x42], false)
    );
}

#[test]
fn one_that_is_not_taken_goes_on_where_it_was() {
    let mut source = Machine::used();
    let refused = source.function.save(100);
    assert!(matches!(refused, Err(MigrationError::TooLarge(100))));
    source.function.set_running(true).unwrap();
    source.poke(0xd000_001c, 0);
    assert_eq!(source.sent(), [0x42]);
    assert!(source.device.fire(Interrupt::Msix, 1));
}

#[test]
fn a_device_that_cannot_be_migrated_says_so() {
    let machine = Machine::new(device(config()));
    let saved = machine.function.save(LIMIT);
    assert!(matches!(saved, Err(MigrationError::Unsupported)));
    let state = Machine::used().function.save(LIMIT).unwrap();
    let restored = machine.function.restore(&state);
    assert!(matches!(restored, Err(MigrationError::Unsupported)));
}

#[test]
fn a_state_that_is_no_such_functions_is_refused() {
    let good = Machine::used().function.save(LIMIT).unwrap();
    let refused = |change: fn(&mut AssignedState)| {
        let mut state = good.clone();
        change(&mut state);
        let target = Machine::new(device(config()).migratable());
        let before = target.config();
        let error = target.function.restore(&state).unwrap_err();
        assert_eq!(target.config(), before);
        error
    };
    assert!(matches!(
        refused(|state| state.config.truncate(100)),
        MigrationError::Config(100)
    ));
    // Another vendor; MSI's count of vectors; an enabled BAR's type.
    assert!(matches!(
        refused(|state| state.config[0] ^= 1),
        MigrationError::Config(0)
    ));
    assert!(matches!(
        refused(|state| state.config[0x52] ^= 2),
        MigrationError::Config(0x52)
    ));
    assert!(matches!(
        refused(|state| state.config[0x10] ^= 1),
        MigrationError::Config(0x10)
    ));
    assert!(matches!(
        refused(|state| state.msix = None),
        MigrationError::Kind
    ));
    assert!(matches!(
        refused(|state| state.msi_pending = None),
        MigrationError::Kind
    ));
    let vectors = refused(|state| state.msix.as_mut().unwrap().entries.truncate(2));
    assert!(matches!(vectors, MigrationError::Vectors(_)));
    // The device's own part is for the device to refuse, at the end.
    assert!(matches!(
        refused(|state| state.device.truncate(9)),
        MigrationError::Device(_)
    ));
    assert!(matches!(
        refused(|state| state.device.push(0)),
        MigrationError::Device(_)
    ));
}

/// A device that failed is as after a reset, once it had one.
#[test]
fn a_device_that_failed_can_be_reset() {
    let mut state = Machine::used().function.save(LIMIT).unwrap();
    let target = Machine::new(device(config()).migratable());
    state.device.truncate(9);
    assert!(target.function.restore(&state).is_err());
    assert!(target.function.set_running(true).is_err());
    target.function.reset();
    assert!(target.function.set_running(true).is_ok() && !target.function.take_failure());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the saved bytes: no panic, and the guest finds nothing that it could not have written.
    #[test]
    fn hostile_states(
        bytes in prop::collection::vec((0..4096_usize, any::<u8>()), 0..20),
        entries in prop::collection::vec((any::<u64>(), any::<u32>(), any::<bool>(), any::<bool>()), 3),
        pending: u32,
    ) {
        let mut state = Machine::used().function.save(LIMIT).unwrap();
        for (offset, byte) in bytes {
            state.config[offset] = byte;
        }
        for (entry, (address, data, masked, pending)) in state.msix.iter_mut().flat_map(|msix| &mut msix.entries).zip(entries) {
            (entry.address, entry.data, entry.masked, entry.pending) = (address, data, masked, pending);
        }
        state.msi_pending = Some(pending);
        let target = Machine::new(device(config()).migratable());
        let fresh = target.config();
        let restored = target.function.restore(&state);
        let now = target.config();
        // Identity and capabilities' headers.
        for at in [0, 2, 8, 0x34, 0x41, 0x51, MSIX, MSIX + 1] {
            prop_assert_eq!(now[at], fresh[at]);
        }
        if restored.is_ok() {
            let again = target.function.save(LIMIT).unwrap();
            prop_assert_eq!(again.config, state.config);
        }
    }
}
