//! The DMAR table, byte by byte (VT-d §8).

use iommu_emul::{
    dmar::{Atsr, DeviceScope, Dmar, DmarError, Drhd, Rmrr},
    vtd::Config,
};
use pio_mmio_bus::pci::RequesterId;

#[test]
fn a_table_as_the_specification_lays_it_out() {
    let capabilities = Config::default().on_second_page().capabilities().unwrap();
    let mut dmar = Dmar::new(&capabilities, true);
    dmar.drhd(&Drhd {
        base: 0xfed9_0000,
        register_bytes: capabilities.register_bytes(),
        segment: 0,
        include_all: true,
        scopes: &[DeviceScope::IoApic {
            id: 2,
            requester: RequesterId(0xff00),
        }],
    })
    .unwrap()
    .rmrr(&Rmrr {
        segment: 1,
        base: 0x1000,
        limit: 0x2fff,
        scopes: &[DeviceScope::Endpoint(RequesterId(0x1d << 3 | 7))],
    })
    .unwrap()
    .atsr(&Atsr {
        segment: 0,
        all_ports: false,
        ports: &[DeviceScope::Bridge(RequesterId(1 << 3))],
    })
    .unwrap();
    let mut expected = vec![47, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    expected.extend([0, 0, 24, 0, 1, 1, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0]);
    expected.extend([3, 8, 0, 0, 2, 0xff, 0, 0]);
    expected.extend([1, 0, 32, 0, 0, 0, 1, 0, 0, 0x10, 0, 0, 0, 0, 0, 0]);
    expected.extend([0xff, 0x2f, 0, 0, 0, 0, 0, 0, 1, 8, 0, 0, 0, 0, 0x1d, 7]);
    expected.extend([2, 0, 16, 0, 0, 0, 0, 0, 2, 8, 0, 0, 0, 0, 1, 0]);
    assert_eq!(dmar.body(), expected);
}

#[test]
fn impossible_structures_are_refused() {
    let mut dmar = Dmar::new(&Config::default().capabilities().unwrap(), false);
    for (base, limit) in [(1, 0xfff), (0, 0x1000), (0x2000, 0xfff)] {
        let rmrr = Rmrr {
            segment: 0,
            base,
            limit,
            scopes: &[],
        };
        assert_eq!(dmar.rmrr(&rmrr), Err(DmarError::Reserved { base, limit }));
    }
    let scopes = vec![DeviceScope::Endpoint(RequesterId(0)); 8190];
    let atsr = Atsr {
        segment: 0,
        all_ports: false,
        ports: &scopes,
    };
    assert!(dmar.atsr(&atsr).is_ok());
    let scopes = vec![DeviceScope::Endpoint(RequesterId(0)); 8192];
    let atsr = Atsr {
        ports: &scopes,
        ..atsr
    };
    assert_eq!(dmar.atsr(&atsr), Err(DmarError::TooManyScopes(8192)));
}
