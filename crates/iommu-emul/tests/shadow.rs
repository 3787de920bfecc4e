//! Caching-mode shadowing: the physical IOMMU follows the guest's tables, invalidation by invalidation.

mod support;

use std::sync::Arc;

use iommu_emul::{
    mapping::Recording,
    shadow::Shadow,
    spec::register::{Global, offset},
    vtd::Config,
};
use proptest::prelude::*;
use support::{CONTEXT, CONTEXTS, DEVICE, Guest, SECOND, iotlb_domain, iotlb_global, iotlb_pages};

type TestShadow = Arc<Shadow<support::Memory, Arc<Recording>>>;

fn shadowed(budget: u64) -> (Guest, TestShadow, Arc<Recording>) {
    let guest = Guest::new(Config {
        caching_mode: true,
        ..Config::default()
    });
    guest.context(CONTEXT.0, CONTEXT.1);
    guest.start(0);
    let iommu = Arc::new(Recording::default());
    let shadow = Shadow::new(guest.unit.clone(), DEVICE, iommu.clone(), budget);
    (guest, shadow, iommu)
}

#[test]
fn pages_follow_their_invalidation() {
    let (guest, shadow, iommu) = shadowed(100_000);
    guest.map_page(0x5000, 0x6000);
    assert_eq!(iommu.reaches(0x5000), None);
    guest.submit(&[iotlb_pages(5, 0x5000, 0)]);
    assert_eq!(iommu.reaches(0x5123), Some(0x6123));
    guest.map_page(0x5000, 0x7000);
    guest.submit(&[iotlb_pages(6, 0x5000, 0), iotlb_pages(5, 0x4000, 0)]);
    assert_eq!(
        iommu.reaches(0x5000),
        Some(0x6000),
        "not what was invalidated"
    );
    guest.submit(&[iotlb_pages(5, 0x4000, 1)]);
    assert_eq!(iommu.reaches(0x5000), Some(0x7000));
    // Only what differs is touched.
    let before = shadow.counts();
    guest.submit(&[iotlb_domain(5), iotlb_global()]);
    assert_eq!(shadow.counts(), before);
    // A large page takes the place of a small one.
    guest.map(SECOND, 4, 0, (2, 0x40_0083), 3);
    guest.submit(&[iotlb_pages(5, 0x5000, 0)]);
    assert_eq!(iommu.reaches(0x1f_ffff), Some(0x5f_ffff));
    guest.store(SECOND, 0);
    guest.submit(&[iotlb_domain(5)]);
    assert_eq!(iommu.reaches(0x5000), None);
    assert!(iommu.reachable().is_empty());
}

/// What appears at the same time is mapped by one call, and goes by one; what was there before is not touched.
#[test]
fn a_run_is_mapped_as_one() {
    let (guest, shadow, iommu) = shadowed(100_000);
    let counts = || {
        let counts = shadow.counts();
        (counts.maps, counts.unmaps)
    };
    for page in 1..4 {
        guest.map_page(page << 12, 0x10_0000 + (page << 12));
    }
    guest.submit(&[iotlb_pages(5, 0, 2)]);
    assert_eq!(counts(), (1, 0));
    // Its neighbours: one goes on where it ends, one leads elsewhere.
    guest.map_page(0x4000, 0x10_4000);
    guest.map_page(0x5000, 0x20_0000);
    guest.submit(&[iotlb_pages(5, 0, 3)]);
    assert_eq!(counts(), (3, 0));
    for page in 1..4 {
        guest.map(SECOND, 4, page << 12, (1, 0), 3);
    }
    guest.submit(&[iotlb_pages(5, 0, 2)]);
    assert_eq!(counts(), (3, 1));
    assert_eq!(
        [0x1000, 0x3000, 0x4000, 0x5000].map(|address| iommu.reaches(address)),
        [None, None, Some(0x10_4000), Some(0x20_0000)]
    );
}

/// The rest of a run of which a part goes is mapped again, be it inside or outside of what was invalidated.
#[test]
fn a_part_of_a_run_goes() {
    let (guest, shadow, iommu) = shadowed(100_000);
    for page in 0..8 {
        guest.map_page(page << 12, 0x10_0000 + (page << 12));
    }
    guest.submit(&[iotlb_pages(5, 0, 3)]);
    guest.map(SECOND, 4, 0x4000, (1, 0), 3);
    guest.submit(&[iotlb_pages(5, 0x4000, 1)]);
    for page in 0..8_u64 {
        let expected = (page != 4).then_some(0x10_0000 + (page << 12));
        assert_eq!(iommu.reaches(page << 12), expected, "{page}");
    }
    let counts = shadow.counts();
    assert_eq!((counts.maps, counts.unmaps), (3, 1));
}

#[test]
fn contexts_and_translation_switch_everything() {
    let (guest, _shadow, iommu) = shadowed(100_000);
    guest.map_page(0x5000, 0x6000);
    guest.submit(&[iotlb_global()]);
    let device = [u64::from(DEVICE.0) << 32 | 3 << 4 | 1, 0];
    guest.store(CONTEXTS + 16 * 0x13, 0);
    guest.submit(&[device]);
    assert!(iommu.reachable().is_empty(), "not present: blocked");
    guest.context(2 << 2 | 1, 5 << 8 | 2);
    guest.submit(&[device]);
    assert_eq!(iommu.reaches(0x12_3456), Some(0x12_3456), "pass-through");
    guest.context(CONTEXT.0, CONTEXT.1);
    guest.submit(&[device]);
    assert_eq!(
        (iommu.reaches(0x5000), iommu.reaches(0x12_3456)),
        (Some(0x6000), None)
    );
    guest.write32(offset::GCMD, Global::QUEUED_INVALIDATION.bits());
    assert_eq!(iommu.reaches(0x5000), Some(0x5000), "off: physical");
}

/// Tables that loop into themselves say that there are 2^36 pages: the walk ends and the device reaches nothing.
#[test]
fn tables_without_end_are_given_up() {
    let (guest, shadow, iommu) = shadowed(10_000);
    guest.map_page(0x5000, 0x6000);
    guest.submit(&[iotlb_global()]);
    assert_eq!(iommu.reaches(0x5000), Some(0x6000));
    for i in 0..512 {
        guest.store(SECOND + 8 * i, SECOND | 3);
    }
    guest.submit_and_wait(&[iotlb_domain(5)], 1);
    assert_eq!(guest.status(), 1);
    assert_eq!(shadow.counts().overflows, 1);
    assert!(iommu.reachable().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// A guest that invalidates what it changed gets what its tables say, for any sequence of changes.
    #[test]
    fn the_shadow_is_the_tables(changes in prop::collection::vec((0..40_u64, 0..6_u64, any::<bool>()), 1..60)) {
        let (guest, _shadow, iommu) = shadowed(100_000);
        for (page, target, large) in changes {
            let input = page << 12 | if large { page << 21 } else { 0 };
            if large {
                let word = if target == 0 { 0 } else { target << 21 | 0x83 };
                guest.map(SECOND, 4, input, (2, word), 3);
                guest.submit(&[iotlb_pages(5, input, 9)]);
            } else if guest.translate(&guest.view(), input, iommu_emul::vtd::Access::Read).is_none() {
                // Below a large page there is no table to change.
                guest.map_page(input, target << 12);
                guest.submit(&[iotlb_pages(5, input, 0)]);
            }
            let _ = guest.take_fault();
        }
        let view = guest.view();
        for page in 0..40_u64 {
            for input in [page << 12, page << 12 | page << 21] {
                let translated = guest.translate(&view, input, iommu_emul::vtd::Access::Read);
                prop_assert_eq!(iommu.reaches(input), translated);
                let _ = guest.take_fault();
            }
        }
    }
}
