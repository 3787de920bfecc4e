//! The IOMMU targets on random bytes, without libFuzzer.

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn iommu(data in prop::collection::vec(any::<u8>(), 0..4096)) {
        fuzz::iommu::iommu(&data);
    }

    #[test]
    fn iommu_snapshot(data in prop::collection::vec(any::<u8>(), 0..64)) {
        fuzz::iommu::iommu_snapshot(&data);
    }
}
