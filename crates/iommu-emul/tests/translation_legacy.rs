//! Legacy-mode translation: each way an address can go, and each fault (VT-d §3.4.2, §3.7, §7.1).

mod support;

use iommu_emul::vtd::{Access, Config};
use support::{CONTEXT, CONTEXTS, Guest, MEMORY, ROOT, SECOND, iotlb_global, legacy};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemory, Permissions};

#[test]
fn pages_of_all_sizes_translate() {
    let guest = legacy();
    let view = guest.view();
    guest.map_page(0x7_1234_5000, 0x6000);
    guest.map(SECOND, 4, 0x20_0000, (2, 0x40_0000 | 0x83), 3);
    guest.map(SECOND, 4, 0x4000_0000, (3, 0x83), 3);
    for (input, output) in [
        (0x7_1234_5678, 0x6678),
        (0x3f_ffff, 0x5f_ffff),
        (0x4000_1234, 0x1234),
        (0x7fff_ffff, 0x3fff_ffff),
    ] {
        for _cold_then_cached in 0..2 {
            assert_eq!(guest.translate(&view, input, Access::Read), Some(output));
            assert_eq!(guest.translate(&view, input, Access::Write), Some(output));
        }
    }
    assert_eq!(guest.take_fault(), None);
}

#[test]
fn three_and_five_levels_translate() {
    for levels in [3, 5] {
        let guest = Guest::new(Config {
            levels: 5,
            ..Config::default()
        });
        guest.context(SECOND | 1, 5 << 8 | u64::from(levels - 2));
        guest.start(0);
        let view = guest.view();
        let input = (1 << (12 + 9 * levels - 1)) | 0x5000;
        guest.map(SECOND, levels, input, (1, 0x6000 | 3), 3);
        assert_eq!(
            guest.translate(&view, input | 8, Access::Write),
            Some(0x6008)
        );
        let beyond = 1 << (12 + 9 * levels);
        assert_eq!(guest.translate(&view, beyond, Access::Read), None);
        assert_eq!(guest.take_fault(), Some((4, 0x0113, beyond)));
    }
}

#[test]
fn a_dma_over_superpages_is_not_cut_into_small_ones() {
    let guest = legacy();
    guest.map(SECOND, 4, 0x20_0000, (2, 0x40_0000 | 0x83), 3);
    guest.map(SECOND, 4, 0x40_0000, (2, 0x80_0000 | 0x83), 3);
    let memory = guest.view().memory();
    let slices: Vec<_> = memory
        .get_slices(GuestAddress(0x20_1000), 0x30_0000, Permissions::Write)
        .unwrap()
        .map(|slice| slice.unwrap().len())
        .collect();
    assert_eq!(slices, [0x1f_f000, 0x10_1000]);
}

#[test]
fn without_translation_addresses_are_physical() {
    let guest = Guest::new(Config::default());
    let view = guest.view();
    guest.store(0x1_2340, 77);
    let word: u64 = view.memory().read_obj(GuestAddress(0x1_2340)).unwrap();
    assert_eq!(word, 77);
    assert!(view.memory().read_obj::<u64>(GuestAddress(MEMORY)).is_err());
    guest.context(CONTEXT.0, CONTEXT.1);
    guest.start(0);
    assert!(
        view.memory()
            .read_obj::<u64>(GuestAddress(0x1_2340))
            .is_err()
    );
}

#[test]
fn pass_through_reaches_memory_and_nothing_beyond() {
    let guest = Guest::new(Config::default());
    guest.context(2 << 2 | 1, 5 << 8 | 2);
    guest.start(0);
    let view = guest.view();
    assert_eq!(
        guest.translate(&view, 0x123_4567, Access::Write),
        Some(0x123_4567)
    );
    assert!(
        !view
            .memory()
            .check_range(GuestAddress(MEMORY - 4), 8, Permissions::Read)
    );
    assert!(
        view.memory()
            .check_range(GuestAddress(MEMORY - 8), 8, Permissions::Read)
    );
    assert_eq!(guest.translate(&view, 1 << 48, Access::Read), None);
    assert_eq!(guest.take_fault(), Some((4, 0x0113, 1 << 48)));
}

/// Each fault of a context, and the code that tells it.
#[test]
fn context_faults() {
    let entry = CONTEXTS + 16 * 0x13;
    let cases: [(&str, (u64, u64), u8); 13] = [
        ("root not present", (ROOT + 16, CONTEXTS), 1),
        ("context not present", (entry, SECOND), 2),
        ("reserved translation type", (entry, SECOND | 3 << 2 | 1), 3),
        (
            "device-TLB type without device-TLBs",
            (entry, SECOND | 1 << 2 | 1),
            3,
        ),
        ("unsupported width", (entry + 8, 5 << 8 | 3), 3),
        ("reserved width", (entry + 8, 5 << 8 | 7), 3),
        ("second stage beyond memory", (entry, MEMORY | 1), 3),
        ("root beyond memory", (ROOT + 16, MEMORY | 1), 9),
        ("root reserved low", (ROOT + 16, CONTEXTS | 2 | 1), 0xa),
        ("root reserved high", (ROOT + 24, 1), 0xa),
        (
            "root beyond the address width",
            (ROOT + 16, 1 << 48 | 1),
            0xa,
        ),
        ("context reserved low", (entry, SECOND | 1 << 4 | 1), 0xb),
        (
            "context reserved high",
            (entry + 8, 1 << 24 | 5 << 8 | 2),
            0xb,
        ),
    ];
    for (what, (at, word), code) in cases {
        let guest = legacy();
        guest.map_page(0x5000, 0x6000);
        guest.store(at, word);
        let view = guest.view();
        assert_eq!(guest.translate(&view, 0x5123, Access::Read), None, "{what}");
        assert_eq!(guest.take_fault(), Some((code, 0x0113, 0x5000)), "{what}");
    }
}

/// Each fault of a walk. `leaf` replaces the entry of 0x5000, which maps 0x6000.
#[test]
fn walk_faults() {
    for (what, leaf, access, code) in [
        ("not present, read", 0, Access::Read, 6),
        ("not present, write", 0x6000, Access::Write, 5),
        ("read-only", 0x6000 | 1, Access::Write, 5),
        ("write-only", 0x6000 | 2, Access::Read, 6),
        ("reserved bit 11", 0x6000 | 1 << 11 | 3, Access::Read, 0xc),
        ("beyond the address width", 1 << 50 | 3, Access::Read, 0xc),
        (
            "into the interrupt range",
            0xfee0_0000 | 3,
            Access::Write,
            0xe,
        ),
    ] {
        let guest = legacy();
        guest.map(SECOND, 4, 0x5000, (1, leaf), 3);
        let view = guest.view();
        assert_eq!(guest.translate(&view, 0x5000, access), None, "{what}");
        assert_eq!(guest.take_fault(), Some((code, 0x0113, 0x5000)), "{what}");
    }
    for (what, level, entry, code) in [
        ("misaligned 2 MiB page", 2, 0x21_0000 | 0x83, 0xc),
        ("misaligned 1 GiB page", 3, 0x20_0000 | 0x83, 0xc),
        ("512 GiB page", 4, 0x83, 0xc),
        ("table beyond memory", 4, MEMORY | 3, 7),
    ] {
        let guest = legacy();
        guest.map(SECOND, 4, 0x5000, (level, entry), 3);
        let view = guest.view();
        assert_eq!(guest.translate(&view, 0x5000, Access::Read), None, "{what}");
        assert_eq!(guest.take_fault(), Some((code, 0x0113, 0x5000)), "{what}");
    }
}

#[test]
fn permissions_of_all_levels_add_up() {
    let guest = legacy();
    let view = guest.view();
    guest.map_page(0x5000, 0x6000);
    let table = guest.load(SECOND);
    guest.store(SECOND, table & !2);
    assert_eq!(guest.translate(&view, 0x5000, Access::Read), Some(0x6000));
    assert_eq!(guest.translate(&view, 0x5000, Access::Write), None);
    assert_eq!(guest.take_fault(), Some((5, 0x0113, 0x5000)));
}

#[test]
fn fault_processing_can_be_disabled() {
    let guest = legacy();
    guest.context(CONTEXT.0 | 2, CONTEXT.1);
    let view = guest.view();
    assert_eq!(guest.translate(&view, 0x5000, Access::Read), None);
    assert_eq!(guest.take_fault(), None);
}

/// DMA to 0xFEEx_xxxx; see Wojtczuk and Rutkowska, "Following the White Rabbit", and Cloud Hypervisor #8760.
#[test]
fn the_interrupt_range_is_never_memory() {
    for pass_through in [false, true] {
        let guest = legacy();
        if pass_through {
            guest.context(2 << 2 | 1, 5 << 8 | 2);
        } else {
            // A page of 1 GiB around the range, and one that ends there from elsewhere.
            guest.map(SECOND, 4, 0xc000_0000, (3, 0xc000_0000 | 0x83), 3);
            guest.map(SECOND, 4, 0x1_0000_0000, (3, 0xc000_0000 | 0x83), 3);
        }
        let view = guest.view();
        for at in [0xfee0_0000_u64, 0xfee0_1004, 0xfeef_ffff] {
            assert_eq!(guest.translate(&view, at, Access::Write), None);
        }
        for at in [0xfedf_ffff_u64, 0xfef0_0000] {
            assert_eq!(guest.translate(&view, at, Access::Write), Some(at));
            // Contiguity ends at the range, however large the page.
            let (_, length) = view
                .memory()
                .translate(GuestAddress(at), Access::Read)
                .unwrap();
            assert!(at + length <= 0xfee0_0000 || at >= 0xfef0_0000);
        }
        if !pass_through {
            assert_eq!(guest.translate(&view, 0x1_3ee0_0000, Access::Write), None);
            assert_eq!(
                guest.translate(&view, 0x1_3edf_f000, Access::Write),
                Some(0xfedf_f000)
            );
        }
    }
    let off = Guest::new(Config::default());
    assert_eq!(off.translate(&off.view(), 0xfee0_0000, Access::Write), None);
    assert_eq!(off.take_fault(), None);
}

/// Ranges at the top of the address space: CVE-2019-18960, and `vm_memory::Iotlb` of 0.18, which adds without a check.
#[test]
fn ranges_beyond_the_last_address_are_errors() {
    let guest = legacy();
    let off = Guest::new(Config::default());
    for memory in [guest.view().memory(), off.view().memory()] {
        for (at, count) in [
            (u64::MAX, 2),
            (u64::MAX - 7, 8),
            (u64::MAX, usize::MAX),
            (0, usize::MAX),
        ] {
            let at = GuestAddress(at);
            assert!(!memory.check_range(at, count, Permissions::Read));
            let mut bytes = [0; 16];
            assert!(memory.read_slice(&mut bytes[..count.min(16)], at).is_err() || count > 16);
        }
        assert!(memory.check_range(GuestAddress(u64::MAX), 0, Permissions::Read));
    }
}

#[test]
fn a_requester_that_moves_takes_its_new_context() {
    let guest = legacy();
    guest.map_page(0x5000, 0x6000);
    let view = guest.view();
    assert_eq!(guest.translate(&view, 0x5000, Access::Read), Some(0x6000));
    view.set_requester(pio_mmio_bus::pci::RequesterId(0x0208));
    assert_eq!(guest.translate(&view, 0x5000, Access::Read), None);
    assert_eq!(guest.take_fault(), Some((1, 0x0208, 0x5000)));
    guest.submit_and_wait(&[iotlb_global()], 1);
    assert_eq!(guest.status(), 1);
}
