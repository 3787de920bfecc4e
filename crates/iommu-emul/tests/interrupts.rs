//! Interrupt remapping and posting (VT-d §5.1, §5.2).

#![expect(clippy::unwrap_used, clippy::panic, reason = "test code")]

mod support;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use iommu_emul::{
    spec::register::{Global, offset},
    vtd::{Config, Remapper},
};
use pio_mmio_bus::{
    interrupt::{InterruptError, MsiMessage, MsiRoute, MsiRouter, MsiSink},
    pci::RequesterId,
};
use support::{DEVICE, Guest, IRT, MEMORY};
use vmm_sys_util::eventfd::EventFd;

const DESCRIPTOR: u64 = 0xb000;

fn message(address: u64, data: u32) -> MsiMessage {
    MsiMessage {
        requester: DEVICE,
        address,
        data,
    }
}

/// A remappable request for `handle`, without a subhandle.
fn request(handle: u64) -> MsiMessage {
    let address = 0xfee0_0000 | 1 << 4 | (handle & 0x7fff) << 5 | (handle >> 15) << 2;
    message(address, 0)
}

/// A guest with remapping on and a table of 64 entries; `extended` sets EIME.
fn guest(config: Config, extended: bool) -> Guest {
    let guest = Guest::new(config);
    let extended = if extended { 1 << 11 } else { 0 };
    guest.write64(offset::IRTA, IRT | extended | 5);
    guest.command(Global::INTERRUPT_TABLE_POINTER);
    guest.write64(offset::IQA, support::QUEUE);
    guest.command(Global::QUEUED_INVALIDATION);
    guest.command(Global::INTERRUPT_REMAPPING);
    guest
}

fn entry(guest: &Guest, index: u64, words: [u64; 2]) {
    guest.store(IRT + 16 * index, words[0]);
    guest.store(IRT + 16 * index + 8, words[1]);
}

fn deliver(guest: &Guest, message: MsiMessage) -> Option<(u64, u32)> {
    let outcome = guest.unit.deliver(message);
    match guest.messages().as_slice() {
        [] => {
            assert!(matches!(outcome, Err(InterruptError::Blocked(m)) if m == message));
            None
        }
        [sent] => {
            outcome.unwrap();
            Some((sent.address, sent.data))
        }
        more => panic!("{more:?}"),
    }
}

#[test]
fn without_remapping_messages_pass() {
    let guest = Guest::new(Config::default());
    assert_eq!(
        deliver(&guest, message(0xfee0_1000, 0x31)),
        Some((0xfee0_1000, 0x31))
    );
}

/// An MSI whose address is none of the interrupt range would be a DMA write: Cloud Hypervisor #8760.
#[test]
fn a_message_to_memory_is_blocked() {
    for guest in [
        Guest::new(Config::default()),
        guest(Config::default(), false),
    ] {
        for address in [0x1000, 0xfedf_fffc, 0xfef0_0000] {
            assert_eq!(deliver(&guest, message(address, 0)), None);
        }
        assert_eq!(guest.take_fault(), None);
    }
    let guest = guest(Config::default(), true);
    assert_eq!(deliver(&guest, message(0x100_fee0_0000, 0)), None);
}

#[test]
fn entries_become_messages() {
    let guest = guest(Config::default(), false);
    // Destination 7, vector 0x45, fixed and physical; then lowest priority, logical, hint, level.
    entry(&guest, 3, [7 << 40 | 0x45 << 16 | 1, 0]);
    assert_eq!(deliver(&guest, request(3)), Some((0xfee0_7000, 0x45)));
    entry(
        &guest,
        4,
        [
            7 << 40 | 0x46 << 16 | 1 << 5 | 1 << 4 | 1 << 3 | 1 << 2 | 1,
            0,
        ],
    );
    assert_eq!(deliver(&guest, request(4)), Some((0xfee0_700c, 0xc146)));
}

#[test]
fn x2apic_destinations_have_32_bits() {
    let guest = guest(Config::default(), true);
    entry(&guest, 3, [0x0123_4567 << 32 | 0x45 << 16 | 1, 0]);
    assert_eq!(
        deliver(&guest, request(3)),
        Some((0x0123_4500_fee6_7000, 0x45))
    );
}

#[test]
fn subhandles_add_to_the_handle() {
    let guest = guest(Config::default(), false);
    entry(&guest, 11, [7 << 40 | 0x45 << 16 | 1, 0]);
    let base = request(8).address | 1 << 3;
    assert_eq!(deliver(&guest, message(base, 3)), Some((0xfee0_7000, 0x45)));
    assert_eq!(deliver(&guest, message(base, 56)), None);
    assert_eq!(guest.take_fault().unwrap().0, 0x21);
    assert_eq!(deliver(&guest, message(base, 0x1_0003)), None);
    assert_eq!(guest.take_fault().unwrap().0, 0x20);
    let last = request(0xffff).address | 1 << 3;
    assert_eq!(deliver(&guest, message(last, 0xffff)), None);
    assert_eq!(guest.take_fault().unwrap().0, 0x21);
}

#[test]
fn compatibility_format_passes_only_when_it_may() {
    let compatible = message(0xfee0_1000, 0x31);
    let guest = guest(Config::default(), false);
    assert_eq!(deliver(&guest, compatible), None);
    assert_eq!(guest.take_fault(), Some((0x25, DEVICE.0, 0)));
    guest.command(Global::COMPATIBILITY_FORMAT);
    assert_eq!(deliver(&guest, compatible), Some((0xfee0_1000, 0x31)));
    let extended = self::guest(Config::default(), true);
    extended.command(Global::COMPATIBILITY_FORMAT);
    assert_eq!(deliver(&extended, compatible), None);
}

#[test]
fn faults_name_the_index() {
    let good = 7 << 40 | 0x45 << 16 | 1;
    for (what, words, code) in [
        ("not present", [good & !1, 0], 0x22),
        ("reserved 14:12", [good | 1 << 12, 0], 0x24),
        ("reserved 31:24", [good | 1 << 24, 0], 0x24),
        ("reserved destination", [good | 1 << 32, 0], 0x24),
        ("reserved high", [good, 1 << 20], 0x24),
        ("posted without posting", [good | 1 << 15, 0], 0x24),
        ("another source", [good, 1 << 18 | 0x0114], 0x26),
        ("reserved validation", [good, 3 << 18], 0x26),
    ] {
        let guest = guest(Config::default(), false);
        entry(&guest, 9, words);
        assert_eq!(deliver(&guest, request(9)), None, "{what}");
        assert_eq!(
            guest.take_fault(),
            Some((code, DEVICE.0, 9 << 48)),
            "{what}"
        );
        entry(&guest, 9, [words[0] | 2, words[1]]);
        assert_eq!(deliver(&guest, request(9)), None, "{what}");
        assert_eq!(
            guest.take_fault(),
            None,
            "{what}, fault processing disabled"
        );
    }
    let guest = guest(Config::default(), false);
    guest.write64(offset::IRTA, MEMORY | 5);
    guest.command(Global::INTERRUPT_TABLE_POINTER);
    assert_eq!(deliver(&guest, request(9)), None);
    assert_eq!(guest.take_fault(), Some((0x23, DEVICE.0, 9 << 48)));
}

#[test]
fn sources_are_validated() {
    let guest = guest(Config::default(), false);
    let allowed = |validation: u64, source: u16| {
        entry(&guest, 3, [7 << 40 | 0x45 << 16 | 1, validation]);
        let message = MsiMessage {
            requester: RequesterId(source),
            ..request(3)
        };
        let allowed = deliver(&guest, message).is_some();
        assert_eq!(guest.take_fault().is_none(), allowed);
        allowed
    };
    let exact = 1 << 18 | 0x0113;
    assert!(allowed(exact, 0x0113) && !allowed(exact, 0x0117));
    let ignore_2 = exact | 1 << 16;
    assert!(allowed(ignore_2, 0x0117) && !allowed(ignore_2, 0x0111));
    let ignore_2_1 = exact | 2 << 16;
    assert!(allowed(ignore_2_1, 0x0111) && !allowed(ignore_2_1, 0x0110));
    let ignore_all = exact | 3 << 16;
    assert!(allowed(ignore_all, 0x0110) && !allowed(ignore_all, 0x0118));
    let buses = 2 << 18 | 0x02_04;
    assert!(allowed(buses, 0x0200) && allowed(buses, 0x04ff));
    assert!(!allowed(buses, 0x01ff) && !allowed(buses, 0x0500));
}

#[test]
fn posting_updates_the_descriptor_and_notifies_once() {
    let config = Config {
        posted_interrupts: true,
        ..Config::default()
    };
    let guest = guest(config, true);
    let posted = |vector: u64, urgent: u64| {
        let low = (DESCRIPTOR >> 6 & 0x3ff_ffff) << 38 | vector << 16 | 1 << 15 | urgent << 14 | 1;
        [low, DESCRIPTOR >> 32 << 32]
    };
    entry(&guest, 1, posted(0x81, 0));
    entry(&guest, 2, posted(0x82, 1));
    let control = DESCRIPTOR + 32;
    guest.store(control, 9 << 32 | 0xf2 << 16);
    guest.unit.deliver(request(1)).unwrap();
    assert_eq!(guest.load(DESCRIPTOR + 16), 1 << 1);
    assert_eq!(guest.load(control) & 3, 1);
    let sent = guest.messages();
    assert_eq!(
        (sent.len(), sent[0].address, sent[0].data),
        (1, 0xfee0_9000, 0xf2)
    );
    guest.unit.deliver(request(2)).unwrap();
    assert_eq!(guest.load(DESCRIPTOR + 16), 0b110);
    assert!(guest.messages().is_empty(), "a notification is outstanding");
    guest.store(control, 9 << 32 | 0xf2 << 16 | 2);
    guest.unit.deliver(request(1)).unwrap();
    assert!(guest.messages().is_empty(), "suppressed");
    guest.unit.deliver(request(2)).unwrap();
    assert_eq!(guest.messages().len(), 1, "urgent");

    guest.store(control, 1 << 2);
    assert_eq!(deliver(&guest, request(1)), None);
    assert_eq!(guest.take_fault(), Some((0x28, DEVICE.0, 1 << 48)));
    entry(&guest, 3, [0x3ff_ffff << 38 | 0x81 << 16 | 1 << 15 | 1, 0]);
    assert_eq!(deliver(&guest, request(3)), None);
    assert_eq!(guest.take_fault(), Some((0x27, DEVICE.0, 3 << 48)));
}

/// A router whose routes remember what they are connected to.
#[derive(Default)]
struct Router(Mutex<Vec<Arc<TestRoute>>>);

struct TestRoute {
    eventfd: EventFd,
    message: Mutex<Option<MsiMessage>>,
    triggered: AtomicUsize,
}

struct Handle(Arc<TestRoute>);

impl MsiRoute for Handle {
    fn eventfd(&self) -> &EventFd {
        &self.0.eventfd
    }

    fn update(&self, message: Option<MsiMessage>) -> Result<(), InterruptError> {
        *self.0.message.lock().unwrap() = message;
        Ok(())
    }

    fn trigger(&self) -> Result<(), InterruptError> {
        self.0.triggered.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl MsiRouter for Router {
    fn allocate(&self) -> Result<Arc<dyn MsiRoute>, InterruptError> {
        let route = Arc::new(TestRoute {
            eventfd: EventFd::new(0)?,
            message: Mutex::default(),
            triggered: AtomicUsize::new(0),
        });
        self.0.lock().unwrap().push(route.clone());
        Ok(Arc::new(Handle(route)))
    }
}

#[test]
fn live_routes_follow_the_table() {
    let guest = guest(Config::default(), false);
    let router = Arc::new(Router::default());
    let remapper = Remapper::new(guest.unit.clone(), router.clone());
    let route = remapper.allocate().unwrap();
    let inner = router.0.lock().unwrap()[0].clone();
    let connected = || inner.message.lock().unwrap().map(|m| (m.address, m.data));

    entry(&guest, 3, [7 << 40 | 0x45 << 16 | 1, 0]);
    route.update(Some(request(3))).unwrap();
    assert_eq!(connected(), Some((0xfee0_7000, 0x45)));
    route.trigger().unwrap();
    assert_eq!(inner.triggered.load(Ordering::Relaxed), 1);

    let selective = |index: u64, order: u64| [index << 32 | order << 27 | 1 << 4 | 4, 0];
    entry(&guest, 3, [8 << 40 | 0x46 << 16 | 1, 0]);
    guest.submit_and_wait(&[selective(4, 0), selective(8, 2)], 1);
    assert_eq!(
        (guest.status(), connected()),
        (1, Some((0xfee0_7000, 0x45)))
    );
    guest.submit_and_wait(&[selective(0, 2)], 2);
    assert_eq!(
        (guest.status(), connected()),
        (2, Some((0xfee0_8000, 0x46)))
    );

    entry(&guest, 3, [0, 0]);
    guest.submit_and_wait(&[[4, 0]], 3);
    assert_eq!(connected(), None);
    assert!(route.trigger().is_err());
    assert_eq!(guest.take_fault(), Some((0x22, DEVICE.0, 3 << 48)));

    // Remapping off: the message as the device sends it.
    guest.write32(offset::GCMD, 0);
    assert_eq!(connected(), Some((request(3).address, 0)));
    route.update(None).unwrap();
    assert_eq!(connected(), None);
    route.trigger().unwrap();
    remapper.send(message(0xfee0_1000, 1)).unwrap();
    assert_eq!(guest.messages().len(), 1);
}

#[test]
fn a_posted_route_posts_when_it_is_triggered() {
    let config = Config {
        posted_interrupts: true,
        ..Config::default()
    };
    let guest = guest(config, true);
    let router = Arc::new(Router::default());
    let route = Remapper::new(guest.unit.clone(), router)
        .allocate()
        .unwrap();
    entry(
        &guest,
        1,
        [(DESCRIPTOR >> 6) << 38 | 0x81 << 16 | 1 << 15 | 1, 0],
    );
    guest.store(DESCRIPTOR + 32, 9 << 32 | 0xf2 << 16);
    route.update(Some(request(1))).unwrap();
    route.trigger().unwrap();
    assert_eq!(guest.load(DESCRIPTOR + 16), 2);
    assert_eq!(guest.messages()[0].data, 0xf2);
}
