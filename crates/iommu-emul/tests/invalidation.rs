//! Invalidation: what it covers, what it waits for, and what it does with nonsense (VT-d §6.5).

mod support;

use iommu_emul::{
    spec::register::{Global, offset},
    vtd::{Access, Config},
};
use support::{
    CONTEXT, CONTEXTS, DEVICE, Guest, QUEUE, SECOND, STATUS, iotlb_domain, iotlb_global,
    iotlb_pages, legacy, wait,
};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

const IVA: u16 = 0xf0;
const IOTLB: u16 = 0xf8;
const IQE: u32 = 1 << 4;

/// A guest whose device has used a page of 4 KiB, one of 2 MiB and one of 1 GiB, all now unmapped.
fn stale() -> (Guest, impl Fn(&Guest) -> [bool; 3]) {
    let guest = legacy();
    let view = guest.view();
    guest.map_page(0x5000, 0x6000);
    guest.map(SECOND, 4, 0x20_0000, (2, 0x40_0000 | 0x83), 3);
    guest.map(SECOND, 4, 0x4000_0000, (3, 0x83), 3);
    let used = move |guest: &Guest| {
        [0x5000, 0x20_0000, 0x4000_0000]
            .map(|at| guest.translate(&view, at, Access::Read).is_some())
    };
    assert_eq!(used(&guest), [true; 3]);
    guest.store(SECOND, 0);
    assert_eq!(used(&guest), [true; 3], "cached");
    (guest, used)
}

#[test]
fn the_iotlb_forgets_what_is_invalidated_and_no_more() {
    for (what, descriptor, left) in [
        ("another domain", iotlb_domain(6), [true, true, true]),
        (
            "another page",
            iotlb_pages(5, 0x6000, 0),
            [true, true, true],
        ),
        (
            "the page of another domain",
            iotlb_pages(6, 0x5000, 0),
            [true; 3],
        ),
        ("the page", iotlb_pages(5, 0x5000, 0), [false, true, true]),
        (
            "a range around the page",
            iotlb_pages(5, 0x4000, 2),
            [false, true, true],
        ),
        (
            "4 KiB of the 2 MiB page",
            iotlb_pages(5, 0x2f_f000, 0),
            [true, false, true],
        ),
        (
            "4 KiB of the 1 GiB page",
            iotlb_pages(5, 0x7fff_f000, 0),
            [true, true, false],
        ),
        ("the first GiB", iotlb_pages(5, 0, 18), [false, false, true]),
        ("the domain", iotlb_domain(5), [false; 3]),
        ("everything", iotlb_global(), [false; 3]),
    ] {
        let (guest, used) = stale();
        guest.submit_and_wait(&[descriptor], 7);
        assert_eq!(guest.status(), 7, "{what}");
        assert_eq!(used(&guest), left, "{what}");
    }
}

#[test]
fn the_registers_invalidate_too() {
    for (what, granularity, domain, address, left) in [
        ("page", 3_u64, 5_u64, 0x5000, [false, true, true]),
        ("domain", 2, 5, 0, [false; 3]),
        ("another domain", 2, 6, 0, [true; 3]),
        ("global", 1, 0, 0, [false; 3]),
    ] {
        let (guest, used) = stale();
        guest.write64(IVA, address);
        guest.write64(IOTLB, 1 << 63 | granularity << 60 | domain << 32);
        let done = guest.read64(IOTLB);
        assert_eq!(done >> 63, 0, "{what}");
        assert_eq!(done >> 57 & 3, granularity, "{what}");
        assert_eq!(used(&guest), left, "{what}");
    }
}

#[test]
fn contexts_are_cached_until_they_are_invalidated() {
    let device = |source: u64, mask: u64| [mask << 48 | source << 32 | 3 << 4 | 1, 0];
    for (what, descriptor, forgotten) in [
        ("another domain", [6 << 16 | 2 << 4 | 1, 0], false),
        ("the domain", [5 << 16 | 2 << 4 | 1, 0], true),
        ("another device", device(0x0114, 0), false),
        ("the device", device(DEVICE.0.into(), 0), true),
        ("another function", device(0x0110, 0), false),
        ("every function", device(0x0110, 3), true),
        ("functions 3 and 7", device(0x0117, 1), true),
        ("everything", [1 << 4 | 1, 0], true),
    ] {
        let guest = legacy();
        guest.map_page(0x5000, 0x6000);
        let view = guest.view();
        assert!(guest.translate(&view, 0x5000, Access::Read).is_some());
        guest.store(CONTEXTS + 16 * 0x13, 0);
        guest.submit_and_wait(&[descriptor], 1);
        let left = guest.translate(&view, 0x5000, Access::Read).is_some();
        assert_eq!(left, !forgotten, "{what}");
    }
    let guest = legacy();
    guest.write64(offset::CCMD, 1 << 63 | 1 << 61);
    assert_eq!(guest.read64(offset::CCMD), 1 << 61 | 1 << 59);
}

/// Stale IOTLB after a completed invalidation (Linux and QEMU caching-mode bugs): the wait descriptor completes with the last guard
/// that is older than it, and no register write waits for that.
#[test]
fn a_wait_completes_when_the_last_older_guard_is_gone() {
    let guest = legacy();
    guest.map_page(0x5000, 0x6000);
    let (view, other) = (
        guest.view(),
        guest.unit.view(pio_mmio_bus::pci::RequesterId(0x99)),
    );
    let first = view.memory();
    let word: u64 = first.read_obj(GuestAddress(0x5000)).unwrap();
    assert_eq!(word, 0);
    let second = first.clone();
    let unrelated = other.memory();

    guest.submit_and_wait(&[iotlb_pages(5, 0x5000, 0)], 1);
    assert_eq!(guest.status(), 0);
    assert_eq!(guest.read64(offset::IQH), 16, "the head stays at the wait");
    let younger = view.memory();
    guest.submit_and_wait(&[iotlb_global()], 2);
    drop(first);
    assert_eq!(guest.status(), 0);
    drop(second);
    // The second invalidation waits for the younger guard, which is older than it.
    assert_eq!(guest.status(), 1);
    assert_eq!(guest.read64(offset::IQH), 48);
    drop(younger);
    assert_eq!(guest.status(), 2);
    assert_eq!(guest.read64(offset::IQH), guest.read64(offset::IQT));
    drop(unrelated);
}

#[test]
fn guards_of_other_domains_are_not_waited_for() {
    let guest = legacy();
    guest.map_page(0x5000, 0x6000);
    let guard = guest.view().memory();
    let _: u64 = guard.read_obj(GuestAddress(0x5000)).unwrap();
    guest.submit_and_wait(&[iotlb_domain(6)], 1);
    assert_eq!(guest.status(), 1);
    guest.submit_and_wait(&[iotlb_domain(5)], 2);
    assert_eq!(guest.status(), 1);
    drop(guard);
    assert_eq!(guest.status(), 2);
}

#[test]
fn register_commands_wait_for_guards_as_well() {
    let guest = legacy();
    guest.map_page(0x5000, 0x6000);
    let guard = guest.view().memory();
    let _: u64 = guard.read_obj(GuestAddress(0x5000)).unwrap();
    guest.write64(IOTLB, 1 << 63 | 1 << 60);
    guest.write64(offset::CCMD, 1 << 63 | 1 << 61);
    guest.command(Global::empty());
    guest.write32(offset::GCMD, Global::QUEUED_INVALIDATION.bits());
    assert_eq!(guest.read64(IOTLB) >> 63, 1);
    assert_eq!(guest.read64(offset::CCMD) >> 63, 1);
    assert!(Global::from_bits_retain(guest.read32(offset::GSTS)).contains(Global::TRANSLATION));
    drop(guard);
    assert_eq!(guest.read64(IOTLB) >> 63, 0);
    assert_eq!(guest.read64(offset::CCMD) >> 63, 0);
    assert!(!Global::from_bits_retain(guest.read32(offset::GSTS)).contains(Global::TRANSLATION));
}

#[test]
fn a_queue_that_is_switched_off_forgets_its_wait() {
    let guest = legacy();
    guest.map_page(0x5000, 0x6000);
    let guard = guest.view().memory();
    let _: u64 = guard.read_obj(GuestAddress(0x5000)).unwrap();
    guest.submit_and_wait(&[iotlb_global()], 1);
    guest.write32(offset::GCMD, Global::TRANSLATION.bits());
    assert_eq!(guest.read64(offset::IQH), 0);
    drop(guard);
    assert_eq!(guest.status(), 0);
    assert_eq!(guest.read64(offset::IQH), 0);
    guest.write64(offset::IQT, 0);
    guest.command(Global::QUEUED_INVALIDATION);
    guest.store(QUEUE, wait(9)[0]);
    guest.store(QUEUE + 8, STATUS);
    guest.write64(offset::IQT, 16);
    assert_eq!(guest.status(), 9);
}

#[test]
fn a_wait_can_interrupt() {
    let guest = legacy();
    guest.write32(offset::IEDATA, 0x41);
    guest.write32(offset::IEADDR, 0xfee0_1000);
    guest.submit(&[[1 << 4 | 5, 0]]);
    assert_eq!(guest.read32(offset::ICS), 1);
    assert_eq!(guest.read32(offset::IECTL), 0xc000_0000, "masked: pending");
    assert!(guest.messages().is_empty());
    guest.write32(offset::IECTL, 0);
    let sent = guest.messages();
    assert_eq!(
        (sent.len(), sent[0].address, sent[0].data),
        (1, 0xfee0_1000, 0x41)
    );
    guest.submit(&[[1 << 4 | 5, 0]]);
    assert!(guest.messages().is_empty(), "IWC is still set");
    guest.write32(offset::ICS, 1);
    assert_eq!(guest.read32(offset::ICS), 0);
    guest.submit(&[[1 << 4 | 5, 0]]);
    assert_eq!(guest.messages().len(), 1);
}

/// Every malformed descriptor stops the queue at it; cleared, the queue goes on (§6.5.2.10).
#[test]
fn malformed_descriptors_stop_the_queue() {
    const TYPE: u64 = 3;
    const RESERVED: u64 = 4;
    for (what, descriptor, error) in [
        ("type 0", [0, 0], TYPE),
        ("type 15", [0xf, 0], TYPE),
        ("type in the upper bits", [1 << 9 | 1 << 4 | 1, 0], TYPE),
        ("PASID types in legacy mode", [2 << 4 | 6, 0], TYPE),
        ("context granularity 0", [1, 0], RESERVED),
        ("context reserved bit", [1 << 50 | 1 << 4 | 1, 0], RESERVED),
        ("context high word", [1 << 4 | 1, 1], RESERVED),
        ("IOTLB granularity 0", [2, 0], RESERVED),
        ("IOTLB reserved bits", [1 << 32 | 1 << 4 | 2, 0], RESERVED),
        ("IOTLB high word", [1 << 4 | 2, 1 << 7], RESERVED),
        ("address mask above MAMV", iotlb_pages(5, 0, 19), RESERVED),
        ("wait reserved bit", [1 << 8 | 5, 0], RESERVED),
        ("page-request drain", [1 << 7 | 5, 0], RESERVED),
        ("wait address", [1 << 5 | 5, STATUS | 1], RESERVED),
        ("interrupt reserved bits", [1 << 12 | 4, 0], RESERVED),
    ] {
        let guest = legacy();
        guest.submit(&[iotlb_global(), descriptor, wait(3)]);
        assert_eq!(guest.read32(offset::FSTS), IQE, "{what}");
        assert_eq!(guest.read64(offset::IQERCD), error, "{what}");
        assert_eq!(guest.read64(offset::IQH), 16, "{what}");
        assert_eq!(guest.status(), 0, "{what}");
        // The way Linux recovers: replace the descriptor, clear the error.
        guest.store(QUEUE + 16, wait(2)[0]);
        guest.store(QUEUE + 24, wait(2)[1]);
        guest.write32(offset::FSTS, IQE);
        assert_eq!(guest.read32(offset::FSTS), 0, "{what}");
        assert_eq!(guest.status(), 3, "{what}");
    }
}

#[test]
fn a_queue_outside_memory_or_its_size_is_an_error() {
    let guest = legacy();
    guest.write64(offset::IQT, 4096);
    assert_eq!(guest.read64(offset::IQERCD), 1);
    let guest = legacy();
    guest.write64(offset::IQA, support::MEMORY);
    guest.write64(offset::IQT, 16);
    assert_eq!(guest.read64(offset::IQERCD), 2);
    let guest = legacy();
    guest.write64(offset::IQA, QUEUE | 1 << 11);
    guest.write64(offset::IQT, 16);
    assert_eq!(guest.read64(offset::IQERCD), 6);
}

#[test]
fn wide_descriptors_and_a_queue_that_wraps() {
    let guest = Guest::new(Config {
        scalable: true,
        ..Config::default()
    });
    guest.write64(offset::IQA, QUEUE | 1 << 11);
    guest.command(Global::QUEUED_INVALIDATION);
    let put = |at: u64, words: [u64; 4]| {
        for (word, i) in words.into_iter().zip(0..) {
            guest.store(QUEUE + at + 8 * i, word);
        }
    };
    for round in 1..300_u64 {
        let at = (round - 1) * 32 % 4096;
        put(at, [round << 32 | 1 << 5 | 5, STATUS, 0, 0]);
        guest.write64(offset::IQT, (at + 32) % 4096);
        assert_eq!(u64::from(guest.status()), round);
    }
    let at = guest.read64(offset::IQT);
    put(at, [0x12, 0, 1, 0]);
    guest.write64(offset::IQT, (at + 32) % 4096);
    assert_eq!(guest.read64(offset::IQERCD), 4);
}

#[test]
fn a_status_address_outside_memory_is_harmless() {
    let guest = legacy();
    guest.submit(&[[1 << 5 | 5, !3], wait(4)]);
    assert_eq!(guest.status(), 4);
}

#[test]
fn setting_the_root_table_forgets_contexts() {
    let guest = legacy();
    guest.map_page(0x5000, 0x6000);
    let view = guest.view();
    assert!(guest.translate(&view, 0x5000, Access::Read).is_some());
    guest.write64(offset::RTADDR, 0x7000);
    assert!(guest.translate(&view, 0x5000, Access::Read).is_some());
    guest.command(Global::ROOT_TABLE_POINTER);
    assert_eq!(guest.translate(&view, 0x5000, Access::Read), None);
    assert_eq!(guest.take_fault(), Some((1, DEVICE.0, 0x5000)));
    guest.context(CONTEXT.0, CONTEXT.1);
}
