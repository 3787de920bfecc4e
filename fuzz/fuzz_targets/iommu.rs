//! See [`fuzz::iommu::iommu`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::iommu::iommu(data));
