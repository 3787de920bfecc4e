//! See [`fuzz::iommu::iommu_snapshot`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::iommu::iommu_snapshot(data));
