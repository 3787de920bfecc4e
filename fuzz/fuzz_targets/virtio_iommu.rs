//! See [`fuzz::virtio_iommu::virtio_iommu`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::virtio_iommu::virtio_iommu(data));
