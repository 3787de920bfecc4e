//! A virtual function as the kernel shows it, made of bytes.
#![allow(dead_code, reason = "each test uses what it needs")]

use sriov_vfio::spec::sriov::Header;
use sriov_vfio::vfio::fake::FakeDevice;
use sriov_vfio::vfio::{Interrupt, RegionIndex};

/// Offsets of the capabilities.
pub const POWER: usize = 0x40;
pub const MSI: usize = 0x50;
pub const MSIX: usize = 0x70;
pub const EXPRESS: usize = 0xa0;
pub const VENDOR: usize = 0xe0;

pub fn put(config: &mut [u8], offset: usize, bytes: &[u8]) {
    for (to, from) in config.iter_mut().skip(offset).zip(bytes) {
        *to = *from;
    }
}

/// The configuration space of an 82576's virtual function, with more capabilities than it has.
pub fn config() -> Vec<u8> {
    let mut config = vec![0; 4096];
    put(&mut config, 0x00, &[0x86, 0x80, 0xca, 0x10, 0, 0, 0x10, 0]);
    put(&mut config, 0x08, &[1, 0, 0, 2]);
    put(&mut config, 0x10, &[0x0c]);
    put(&mut config, 0x1c, &[0x0c]);
    put(&mut config, 0x34, &[0x40]);
    put(&mut config, 0x3d, &[1]);
    put(&mut config, POWER, &[0x01, 0x50, 0x23, 0xc8]);
    put(&mut config, MSI, &[0x05, 0x70, 0x80, 0x01]);
    put(&mut config, MSIX, &[0x11, 0xa0, 2, 0, 3, 0, 0, 0, 3, 0x20]);
    put(
        &mut config,
        EXPRESS,
        &[0x10, 0xe0, 2, 0, 0x02, 0x80, 0, 0x10],
    );
    put(&mut config, EXPRESS + 8, &[0x10, 0x28, 0xff, 0]);
    put(&mut config, VENDOR, &[0x09, 0, 8, 0xaa, 1, 2, 3, 4, 5, 6]);
    for (offset, id, next) in [
        (0x100, 0x000e, 0x110),
        (0x110, 1, 0x160),
        (0x160, 0x10, 0x1a0),
        (0x1a0, 0xf, 0x1b0),
        (0x1b0, 0x1b, 0x1c0),
        (0x1c0, 0x15, 0x1d0),
        (0x1d0, 3, 0),
    ] {
        put(
            &mut config,
            offset,
            &Header::new(id, 1, next).0.to_le_bytes(),
        );
        put(&mut config, offset + 4, &[0x77; 4]);
    }
    config
}

/// BAR 0 with 16 KiB, BAR 3 with the MSI-X table at 0 and its pending bits at 0x2000.
pub fn device(config: Vec<u8>) -> FakeDevice {
    let size = 0x4000;
    FakeDevice::new(config)
        .region(RegionIndex::Bar(0), vec![0x50; 0x4000], Some(0..size))
        .region(RegionIndex::Bar(3), vec![0x53; 0x4000], Some(0..size))
        .vectors(Interrupt::Intx, 1)
        .vectors(Interrupt::Msi, 1)
        .vectors(Interrupt::Msix, 3)
        .vectors(Interrupt::Error, 1)
}
