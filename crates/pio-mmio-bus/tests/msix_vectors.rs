//! MSI-X and MSI: tables, masks, pending bits (PCI Express Base Specification 5.0 §6.1.4, §7.7.1, §7.7.2).
#![expect(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "test code"
)]

mod machine;

use std::sync::Arc;

use machine::*;
use pio_mmio_bus::bus::{AccessError, BusDevice};
use pio_mmio_bus::interrupt::{InterruptError, MsiMessage, MsiRoute, MsiRouter, RecordingRouter};
use pio_mmio_bus::pci::{
    ConfigBuilder, ConfigSpace, Msi, Msix, MsixEntryState, MsixState, PciFunction, RequesterId,
    RootPort, VectorsError,
};
use proptest::prelude::*;
use vmm_sys_util::eventfd::EventFd;

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
const CONTROL: u16 = 0x42;
const REQUESTER: RequesterId = RequesterId::new(0, 3 << 3);

struct Fixture {
    router: RecordingRouter,
    msix: Arc<Msix>,
    function: Arc<ConfigSpace>,
    routes: Vec<Arc<dyn MsiRoute>>,
}

impl Fixture {
    fn new(vectors: u16) -> Self {
        let machine = Machine::new();
        let router = RecordingRouter::new();
        let msix = Msix::new(vectors, &router).unwrap();
        let function = ConfigBuilder::endpoint(IDENTITY)
            .capability(msix.capability(2, 0x800))
            .build(&machine.decoder)
            .unwrap();
        function.set_requester(REQUESTER);
        write16(&*function, COMMAND, COMMAND_BUS_MASTER);
        let routes = (0..vectors)
            .map(|vector| msix.route(vector).unwrap())
            .collect();
        Self {
            router,
            msix,
            function,
            routes,
        }
    }

    fn read(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.msix.read(offset, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    fn write(&self, offset: u64, value: u32) {
        self.msix.write(offset, &value.to_le_bytes()).unwrap();
    }

    fn set(&self, vector: u64, message: u32, masked: bool) {
        self.write(16 * vector, 0xfee0_0000);
        self.write(16 * vector + 8, message);
        self.write(16 * vector + 12, masked.into());
    }

    fn control(&self, value: u16) {
        write16(&*self.function, CONTROL, value);
    }

    fn sent(&self) -> Vec<u32> {
        self.router
            .take()
            .into_iter()
            .map(|message| message.data)
            .collect()
    }
}

#[test]
fn the_capability_describes_table_and_pending_bits() {
    let f = Fixture::new(5);
    assert_eq!(read32(&*f.function, 0x40), 0x0004_0011);
    assert_eq!(read32(&*f.function, 0x44), 0x802);
    assert_eq!(read32(&*f.function, 0x48), 0x852);
    assert_eq!(f.msix.size(), 0x1000);
    let most = Msix::new(2048, &RecordingRouter::new()).unwrap();
    assert_eq!((most.pba_offset(), most.size()), (0x8000, 0x1_0000));
    for vectors in [0, 2049, u16::MAX] {
        let result = Msix::new(vectors, &RecordingRouter::new()).map(|_| ());
        assert!(matches!(result, Err(VectorsError::Count { .. })));
    }
    let result = Msix::new(4, &RecordingRouter::with_limit(3)).map(|_| ());
    assert!(matches!(result, Err(VectorsError::Route { vector: 3, .. })));
    assert!(f.msix.route(5).is_none());
}

/// MSI-X table: all offsets and widths 1 to 8, within and beyond table and pending bits.
#[test]
fn msix_table_offsets_and_widths() {
    let f = Fixture::new(3);
    let mut model = [0_u8; 0x40];
    for vector in 0..3 {
        model[16 * vector + 12] = 1;
    }
    for (round, width) in (1..=8_usize).enumerate() {
        for offset in 0..0x60_usize {
            let pattern = [0xff, 0x00, 0xa5, 0x5a][(offset + round) % 4];
            let defined = matches!(width, 4 | 8) && offset % width == 0;
            let mut data = vec![0; width];
            let write = f.msix.write(offset as u64, &vec![pattern; width]);
            let read = f.msix.read(offset as u64, &mut data);
            if !defined {
                let error = Err(AccessError::Width {
                    offset: offset as u64,
                    width,
                });
                assert_eq!((write, read), (error, error));
                continue;
            }
            assert_eq!((write, read), (Ok(()), Ok(())));
            for (at, byte) in (offset..).zip(&data) {
                if at < 0x30 {
                    let mask = match at % 16 {
                        0 => 0xfc,
                        12 => 0x01,
                        13..16 => 0x00,
                        _ => 0xff,
                    };
                    model[at] = pattern & mask;
                }
                assert_eq!(*byte, model.get(at).copied().unwrap_or(0), "{at:#x}");
            }
        }
    }
    for offset in [u64::MAX, u64::MAX - 3, u64::MAX - 7, 1 << 40] {
        for width in [4, 8] {
            let _ = f.msix.read(offset, &mut vec![0; width]);
            let _ = f.msix.write(offset, &vec![0xff; width]);
        }
    }
}

#[test]
fn a_signal_becomes_the_vectors_message() {
    let f = Fixture::new(2);
    f.set(0, 0x30, false);
    f.set(1, 0x31, false);
    f.write(16 + 4, 0x1);
    assert!(!f.msix.enabled());
    f.control(ENABLE);
    assert!(f.msix.enabled());
    f.routes[1].eventfd().write(1).unwrap();
    assert_eq!(
        f.router.take(),
        [MsiMessage {
            requester: REQUESTER,
            address: 0x1_fee0_0000,
            data: 0x31
        }]
    );
    // Changed while unmasked, as Linux never does.
    f.write(16 + 8, 0x32);
    f.routes[1].trigger().unwrap();
    f.routes[0].trigger().unwrap();
    assert_eq!(f.sent(), [0x30, 0x32]);
    // The bus was renumbered.
    f.function.set_requester(RequesterId::new(7, 0));
    f.routes[0].trigger().unwrap();
    assert_eq!(f.router.take()[0].requester, RequesterId::new(7, 0));
}

#[test]
fn signals_while_masked_are_pending_and_delivered_once() {
    let f = Fixture::new(70);
    f.control(ENABLE);
    f.set(65, 0x30, true);
    assert_eq!(f.read(f.msix.pba_offset() + 8), 0);
    f.routes[65].trigger().unwrap();
    f.routes[65].trigger().unwrap();
    assert_eq!(f.read(f.msix.pba_offset() + 8), 2);
    assert_eq!(f.read(f.msix.pba_offset()), 0);
    assert_eq!(f.read(f.msix.pba_offset() + 12), 0);
    f.routes[65].trigger().unwrap();
    assert_eq!(f.sent(), []);
    f.set(65, 0x31, false);
    assert_eq!(f.sent(), [0x31]);
    assert_eq!(f.read(f.msix.pba_offset() + 8), 0);
    // A signal on its way to the guest is not pending, and looking for it does not take it away.
    f.routes[65].trigger().unwrap();
    assert_eq!(f.read(f.msix.pba_offset() + 8), 0);
    assert_eq!(f.sent(), [0x31]);
    f.control(ENABLE | FUNCTION_MASK);
    f.routes[65].trigger().unwrap();
    assert_eq!(f.sent(), []);
    f.control(ENABLE);
    assert_eq!(f.sent(), [0x31]);
    assert_eq!(f.sent(), []);
}

#[test]
fn a_reset_forgets_what_is_pending() {
    let f = Fixture::new(1);
    f.set(0, 0x30, true);
    f.routes[0].trigger().unwrap();
    f.function.reset();
    assert_eq!(f.read(12), 1);
    f.set(0, 0x30, false);
    f.control(ENABLE);
    assert_eq!(f.sent(), []);
}

#[test]
fn saved_state_keeps_what_is_pending() {
    let f = Fixture::new(2);
    f.control(ENABLE);
    f.set(0, 0x30, true);
    f.set(1, 0x31, false);
    f.routes[0].trigger().unwrap();
    let (table, config) = (f.msix.save(), f.function.save());
    assert!(table.entries[0].pending);
    for config_first in [false, true] {
        let g = Fixture::new(2);
        if config_first {
            g.function.restore(&config).unwrap();
        }
        g.msix.restore(&table).unwrap();
        g.function.restore(&config).unwrap();
        assert_eq!(g.msix.save(), table);
        g.routes[1].trigger().unwrap();
        assert_eq!(g.sent(), [0x31]);
        g.write(12, 0);
        assert_eq!(g.sent(), [0x30]);
    }
    let short = MsixState {
        entries: vec![table.entries[0]],
    };
    assert!(matches!(
        f.msix.restore(&short),
        Err(VectorsError::State {
            saved: 1,
            expected: 2
        })
    ));
}

/// An interrupt remapper that refuses the messages to one address.
struct Remapper {
    router: RecordingRouter,
    refused: u64,
}

struct Remapped {
    route: Arc<dyn MsiRoute>,
    refused: u64,
}

impl MsiRouter for Remapper {
    fn allocate(&self) -> Result<Arc<dyn MsiRoute>, InterruptError> {
        Ok(Arc::new(Remapped {
            route: self.router.allocate()?,
            refused: self.refused,
        }))
    }
}

impl MsiRoute for Remapped {
    fn eventfd(&self) -> &EventFd {
        self.route.eventfd()
    }

    fn update(&self, message: Option<MsiMessage>) -> Result<(), InterruptError> {
        match message {
            Some(message) if message.address == self.refused => {
                Err(InterruptError::Blocked(message))
            }
            message => self.route.update(message),
        }
    }
}

/// The message address is an IOVA to an interrupt remapper, which may refuse it (Cloud Hypervisor #8760, "Following the White
/// Rabbit"): then nothing is delivered, neither there nor where the vector pointed before, and the guest may point it elsewhere.
#[test]
fn a_refused_message_is_not_delivered() {
    let remapper = Remapper {
        router: RecordingRouter::new(),
        refused: 0xfee0_1000,
    };
    let msix = Msix::new(1, &remapper).unwrap();
    let machine = Machine::new();
    let function = ConfigBuilder::endpoint(IDENTITY)
        .capability(msix.capability(0, 0))
        .build(&machine.decoder)
        .unwrap();
    write16(&*function, COMMAND, COMMAND_BUS_MASTER);
    let route = msix.route(0).unwrap();
    let point = |address: u32| msix.write(0, &address.to_le_bytes()).unwrap();
    point(0xfee0_0000);
    msix.write(12, &[0; 4]).unwrap();
    write16(&*function, CONTROL, ENABLE);
    route.trigger().unwrap();
    assert_eq!(remapper.router.take().len(), 1);
    point(0xfee0_1000);
    route.trigger().unwrap();
    assert_eq!(remapper.router.take(), []);
    assert!(msix.save().entries[0].pending);
    point(0xfee0_2000);
    assert_eq!(remapper.router.take()[0].address, 0xfee0_2000);
}

/// A message carries the identity of its function, not of the bridge above it (Cloud Hypervisor #8760), and follows when the
/// guest renumbers.
#[test]
fn messages_carry_the_requester_behind_the_bridge() {
    let machine = Machine::new();
    let router = RecordingRouter::new();
    let msix = Msix::new(1, &router).unwrap();
    let function = ConfigBuilder::endpoint(IDENTITY)
        .capability(msix.capability(0, 0))
        .build(&machine.decoder)
        .unwrap();
    let port = RootPort::new(&machine.root, 4).unwrap();
    port.bus().insert(0, Arc::clone(&function) as _).unwrap();
    msix.write(12, &[0; 4]).unwrap();
    write16(&*function, COMMAND, COMMAND_BUS_MASTER);
    write16(&*function, CONTROL, ENABLE);
    let id = RequesterId::new(0, RequesterId::devfn_of(4, 0));
    let route = msix.route(0).unwrap();
    route.trigger().unwrap();
    assert_eq!(router.take(), [], "the port forwards nothing yet");
    machine.write32(id, COMMAND, COMMAND_BUS_MASTER.into());
    assert_eq!(router.take().len(), 1);
    for bus in [1, 0x42, 0xff] {
        machine.write32(id, 0x18, 0xff_0000 | u32::from(bus) << 8);
        route.trigger().unwrap();
        assert_eq!(router.take()[0].requester, RequesterId::new(bus, 0));
    }
    let forwarding = port.save();
    machine.write32(id, COMMAND, COMMAND_MEMORY.into());
    route.trigger().unwrap();
    assert_eq!(router.take(), []);
    port.restore(&forwarding).unwrap();
    assert_eq!(router.take().len(), 1);
    port.reset();
    route.trigger().unwrap();
    assert_eq!(router.take(), []);
}

/// A message is a memory request, which a function may only send as a bus master (PCIe §7.5.1.1.3); until then it waits.
#[test]
fn messages_wait_for_bus_mastering() {
    let f = Fixture::new(1);
    f.set(0, 7, false);
    f.control(ENABLE);
    let (router, msi, function) = msi(1);
    write32(&*function, 0x44, 0xfee0_0000);
    write16(&*function, 0x4c, 7);
    write16(&*function, 0x42, 1);
    let cases = [
        (&f.router, Arc::clone(&f.routes[0]), &f.function),
        (&router, msi.route(0).unwrap(), &function),
    ];
    for (router, route, function) in cases {
        write16(&**function, COMMAND, COMMAND_MEMORY);
        route.trigger().unwrap();
        assert_eq!(router.take(), []);
        let saved = function.save();
        function.restore(&saved).unwrap();
        assert_eq!(router.take(), []);
        write16(&**function, COMMAND, COMMAND_BUS_MASTER);
        let sent: Vec<u32> = router
            .take()
            .into_iter()
            .map(|message| message.data)
            .collect();
        assert_eq!(sent, [7]);
        write16(&**function, COMMAND, COMMAND_BUS_MASTER);
        assert_eq!(router.take(), []);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Signal(usize),
    Control(u16),
    Word(u64, u32),
    Mask(u64, bool),
    Pba,
    SaveRestore,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0..3_usize).prop_map(Step::Signal),
        2 => (0..4_u16).prop_map(|bits| Step::Control(bits << 14)),
        1 => (0..9_u64, any::<u32>()).prop_map(|(n, value)| Step::Word(16 * (n / 3) + 4 * (n % 3), value)),
        3 => (0..3_u64, any::<bool>()).prop_map(|(vector, masked)| Step::Mask(vector, masked)),
        1 => Just(Step::Pba),
        1 => Just(Step::SaveRestore),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    /// Nothing that is signalled is lost, nothing is delivered while masked, and the pending bits say what waits.
    #[test]
    fn vectors_behave_as_the_model(steps in steps()) {
        let mut f = Fixture::new(3);
        let mut control = 0;
        let mut entries = [MsixEntryState { address: 0, data: 0, masked: true, pending: false }; 3];
        for step in steps {
            match step {
                Step::Signal(vector) => {
                    f.routes[vector].trigger().unwrap();
                    entries[vector].pending = true;
                }
                Step::Control(value) => {
                    f.control(value);
                    control = value;
                }
                Step::Word(offset, value) => {
                    f.write(offset, value);
                    let entry = &mut entries[(offset / 16) as usize];
                    match offset % 16 {
                        0 => entry.address = entry.address >> 32 << 32 | u64::from(value & !3),
                        4 => entry.address = entry.address as u32 as u64 | u64::from(value) << 32,
                        _ => entry.data = value,
                    }
                }
                Step::Mask(vector, masked) => {
                    f.write(16 * vector + 12, masked.into());
                    entries[vector as usize].masked = masked;
                }
                Step::Pba => {
                    let bits = (entries.iter().enumerate())
                        .fold(0, |bits, (i, entry)| bits | u32::from(entry.pending) << i);
                    prop_assert_eq!(f.read(0x30), bits);
                }
                Step::SaveRestore => {
                    let (table, config) = (f.msix.save(), f.function.save());
                    prop_assert_eq!(&table.entries[..], &entries[..]);
                    f = Fixture::new(3);
                    f.msix.restore(&table).unwrap();
                    f.function.restore(&config).unwrap();
                }
            }
            let mut expected = Vec::new();
            for entry in &mut entries {
                if control == ENABLE && !entry.masked && entry.pending {
                    entry.pending = false;
                    expected.push(MsiMessage { requester: REQUESTER, address: entry.address, data: entry.data });
                }
            }
            prop_assert_eq!(f.router.take(), expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Snapshot bytes (CVE-2023-50711): any table is one that the guest could have written, but for the low address bits.
    #[test]
    fn hostile_saved_state(
        entries in prop::collection::vec((any::<u64>(), any::<u32>(), any::<bool>(), any::<bool>()), 0..5),
        control: u16,
    ) {
        let f = Fixture::new(3);
        let state = MsixState {
            entries: entries
                .into_iter()
                .map(|(address, data, masked, pending)| MsixEntryState { address, data, masked, pending })
                .collect(),
        };
        f.control(control);
        let fresh = f.msix.save();
        match f.msix.restore(&state) {
            Ok(()) => {
                let open = control & (ENABLE | FUNCTION_MASK) == ENABLE;
                for (saved, restored) in state.entries.iter().zip(f.msix.save().entries) {
                    let pending = saved.pending && (!open || saved.masked);
                    let address = saved.address & !3;
                    prop_assert_eq!(restored, MsixEntryState { address, pending, ..*saved });
                }
            }
            Err(_) => {
                prop_assert_ne!(state.entries.len(), 3);
                prop_assert_eq!(f.msix.save(), fresh);
            }
        }
    }
}

fn msi(vectors: u8) -> (RecordingRouter, Arc<Msi>, Arc<ConfigSpace>) {
    let machine = Machine::new();
    let router = RecordingRouter::new();
    let msi = Msi::new(vectors, &router).unwrap();
    let function = ConfigBuilder::endpoint(IDENTITY)
        .capability(msi.capability())
        .build(&machine.decoder)
        .unwrap();
    function.set_requester(REQUESTER);
    write16(&*function, COMMAND, COMMAND_BUS_MASTER);
    (router, msi, function)
}

#[test]
fn msi_vectors_share_an_address_and_count_in_the_data() {
    let (router, msi, function) = msi(4);
    assert_eq!(read32(&*function, 0x40), 0x0184_0005);
    write32(&*function, 0x44, 0xfee0_1003);
    write32(&*function, 0x48, 0x2);
    write16(&*function, 0x4c, 0x4043);
    assert_eq!(msi.granted(), 0);
    for (granted, log2) in [(1, 0), (2, 1), (4, 2), (4, 5), (4, 7)] {
        write16(&*function, 0x42, log2 << 4 | 1);
        assert_eq!(msi.granted(), granted);
        for vector in 0..4 {
            msi.route(vector).unwrap().trigger().unwrap();
            let sent = router.take();
            if vector < granted {
                let low = (1 << log2.min(5)) - 1;
                let data = 0x4043 & !low | u32::from(vector);
                let address = 0x2_fee0_1000;
                assert_eq!(
                    sent,
                    [MsiMessage {
                        requester: REQUESTER,
                        address,
                        data
                    }]
                );
            } else {
                assert_eq!(sent, []);
            }
        }
        msi.restore_pending(0);
        function.reset();
        write16(&*function, COMMAND, COMMAND_BUS_MASTER);
        write32(&*function, 0x44, 0xfee0_1000);
        write32(&*function, 0x48, 0x2);
        write16(&*function, 0x4c, 0x4043);
    }
    assert!(msi.route(4).is_none());
    for vectors in [0, 3, 5, 33, 64, 128, 255] {
        assert!(Msi::new(vectors, &router).is_err());
    }
}

#[test]
fn msi_masks_and_pending_bits() {
    let (router, msi, function) = msi(2);
    write16(&*function, 0x42, 0x11);
    write32(&*function, 0x50, u32::MAX);
    assert_eq!(read32(&*function, 0x50), 3);
    msi.route(1).unwrap().trigger().unwrap();
    assert_eq!(read32(&*function, 0x54), 2);
    assert_eq!(router.take(), []);
    // A saved state holds them beside the registers, which then still fit.
    let (pending, config) = (msi.save_pending(), function.save());
    let (other_router, other, restored) = self::msi(2);
    other.restore_pending(pending);
    restored.restore(&config).unwrap();
    for (router, function) in [(router, function), (other_router, restored)] {
        write32(&*function, 0x50, 1);
        assert_eq!(router.take().len(), 1);
        assert_eq!(read32(&*function, 0x54), 0);
    }
}
