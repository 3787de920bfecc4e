//! The virtio-iommu target on random bytes, without libFuzzer.

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn virtio_iommu(data in prop::collection::vec(any::<u8>(), 0..2048)) {
        fuzz::virtio_iommu::virtio_iommu(&data);
    }
}
