//! What devices reach of a guest's memory.
#![expect(clippy::unwrap_used, reason = "test code")]

use std::sync::Arc;

use sriov_vfio::vfio::fake::FakeDmaSpace;
use sriov_vfio::vfio::{
    Access, DmaError, DmaSpace, HostMemory, map_guest_memory, unmap_guest_memory,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

type Memory = Arc<GuestMemoryMmap<()>>;

fn memory(ranges: &[(u64, usize)]) -> Memory {
    let ranges: Vec<_> = ranges
        .iter()
        .map(|&(start, size)| (GuestAddress(start), size))
        .collect();
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap())
}

#[test]
fn each_contiguous_region_is_one_mapping() {
    let memory = memory(&[(0, 0x10_0000), (1 << 32, 0x20_0000)]);
    let space = FakeDmaSpace::default();
    assert_eq!(map_guest_memory(&space, &memory).unwrap(), 2);
    let all = Access::all();
    assert_eq!(
        space.mappings(),
        [(0, 0x10_0000, all), (1 << 32, 0x20_0000, all)]
    );
    assert_eq!(space.operations(), (2, 0));
    unmap_guest_memory(&space, &memory).unwrap();
    assert_eq!((space.mappings(), space.operations()), (vec![], (2, 2)));
}

#[test]
fn a_refusal_leaves_nothing_mapped() {
    let memory = memory(&[(0, 0x1000), (0x10_0000, 0x1000), (0x20_0000, 0x1000)]);
    let space = FakeDmaSpace::with_limit(2);
    let error = map_guest_memory(&space, &memory).unwrap_err();
    assert!(
        matches!(
            error,
            DmaError::Refused {
                iova: 0x20_0000,
                size: 0x1000,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(space.mappings(), []);
}

#[test]
fn only_guest_memory_can_be_mapped() {
    let memory = memory(&[(0x1000, 0x2000)]);
    for (start, size) in [
        (0, 0x1000),
        (0x2000, 0x2000),
        (0x1000, u64::MAX),
        (u64::MAX, 0x1000),
        (u64::MAX - 0xfff, 0x1000),
    ] {
        let error = HostMemory::of(&memory, GuestAddress(start), size).unwrap_err();
        assert!(
            matches!(error, DmaError::Memory { .. }),
            "{start:#x} {size:#x}"
        );
    }
}

#[test]
fn memory_is_kept_while_a_device_reaches_it() {
    let memory = memory(&[(0, 0x2000)]);
    let weak = Arc::downgrade(&memory);
    let space = FakeDmaSpace::default();
    map_guest_memory(&space, &memory).unwrap();
    drop(memory);
    assert!(weak.upgrade().is_some());
    space.unmap(0, 0x2000).unwrap();
    assert!(weak.upgrade().is_none());
}

#[test]
fn the_fake_keeps_the_rules_of_type_1() {
    let memory = memory(&[(0, 0x4000)]);
    let part = |start, size| HostMemory::of(&memory, GuestAddress(start), size).unwrap();
    let space = FakeDmaSpace::default();
    space.map(0x1000, &part(0, 0x2000), Access::READ).unwrap();
    for (iova, size) in [
        (0x1000, 0x1000),
        (0x2000, 0x1000),
        (0, 0x2000),
        (0x10, 0x1000),
        (u64::MAX - 0xfff, 0x2000),
    ] {
        assert!(
            space.map(iova, &part(0, size), Access::all()).is_err(),
            "{iova:#x}"
        );
    }
    for (iova, size) in [(0x1000, 0x1000), (0x2000, 0x1000), (0, 0), (2, u64::MAX)] {
        assert!(space.unmap(iova, size).is_err(), "{iova:#x}");
    }
    space.map(0x3000, &part(0, 0x1000), Access::WRITE).unwrap();
    space.unmap(0, 0x10_0000).unwrap();
    assert_eq!(space.mappings(), []);
}

#[cfg(feature = "iommu")]
mod behind_an_emulated_iommu {
    use super::*;
    use iommu_emul::mapping::{BackendError, PageRange, PhysicalIommu};
    use sriov_vfio::vfio::iommu::VfioIommu;
    use vm_memory::Permissions;

    const RANGE: PageRange = PageRange {
        address: 0x7000,
        pages: 3,
    };

    #[test]
    fn a_run_is_one_mapping_with_the_guests_permissions() {
        let space = Arc::new(FakeDmaSpace::default());
        let iommu = VfioIommu::new(space.clone(), memory(&[(0, 0x10_000)]));
        iommu.map(RANGE, 0x2000, Permissions::Read).unwrap();
        assert_eq!(
            (space.mappings(), space.operations()),
            (vec![(0x7000, 0x3000, Access::READ)], (1, 0))
        );
        iommu.unmap(RANGE).unwrap();
        iommu.wait(iommu.invalidate(None));
        assert_eq!(space.mappings(), []);
    }

    #[test]
    fn what_is_no_memory_is_out_of_range_and_what_does_not_fit_is_full() {
        let space = Arc::new(FakeDmaSpace::with_limit(0));
        let iommu = VfioIommu::new(space, memory(&[(0, 0x10_000)]));
        for physical in [0xe000, 0x10_000, u64::MAX - 0xfff] {
            let error = iommu.map(RANGE, physical, Permissions::ReadWrite);
            assert!(matches!(error, Err(BackendError::Range(RANGE))));
        }
        let none = iommu.map(RANGE, 0, Permissions::No);
        assert!(matches!(none, Err(BackendError::Range(RANGE))));
        let full = iommu.map(RANGE, 0, Permissions::Write);
        assert!(matches!(full, Err(BackendError::Full(RANGE))));
    }
}
