//! The capability registers against values that are known, and against nonsense.

use iommu_emul::vtd::{CapabilityError, Config};

/// QEMU 10.0's intel-iommu reads these with `-device intel-iommu,intremap=on,aw-bits=48` (seen over qtest); page-walk coherency
/// (bit 0) and x2APIC destinations (bit 4) differ by choice.
#[test]
fn the_default_is_what_qemu_offers() {
    let capabilities = Config::default().capabilities().unwrap();
    assert_eq!(capabilities.cap(), 0x00d2_008c_222f_0606);
    assert_eq!(capabilities.ecap(), 0x00f0_0f4a | 1 | 1 << 4);
    let cached = Config {
        caching_mode: true,
        ..Config::default()
    };
    assert_eq!(cached.capabilities().unwrap().cap(), 0x00d2_008c_222f_0686);
}

#[test]
fn scalable_mode_is_what_qemu_offers() {
    let config = Config {
        scalable: true,
        extended_interrupts: false,
        ..Config::default()
    };
    let ecap = config.capabilities().unwrap().ecap();
    let coherent = 1 | 1 << 48;
    assert_eq!(ecap, 0x0000_4800_80f0_0f4a | coherent);
}

#[test]
fn inconsistent_capabilities_are_refused() {
    let needs = |config: Config| match config.capabilities() {
        Err(CapabilityError::Needs { feature, .. }) => feature,
        other => panic!("{other:?}"),
    };
    let d = Config::default;
    assert_eq!(
        needs(Config {
            first_stage: true,
            ..d()
        }),
        "first_stage"
    );
    assert_eq!(
        needs(Config {
            nested: true,
            scalable: true,
            ..d()
        }),
        "nested"
    );
    assert_eq!(
        needs(Config {
            pasid_bits: 20,
            ..d()
        }),
        "pasid_bits"
    );
    assert_eq!(
        needs(Config {
            interrupt_remapping: false,
            ..d()
        }),
        "extended_interrupts"
    );
    assert_eq!(
        needs(Config {
            extended_interrupts: false,
            posted_interrupts: true,
            ..d()
        }),
        "posted_interrupts"
    );
    for config in [
        Config { levels: 2, ..d() },
        Config { levels: 6, ..d() },
        Config {
            host_address_width: 53,
            ..d()
        },
        Config {
            fault_records: 0,
            ..d()
        },
        Config {
            fault_records: 257,
            ..d()
        },
    ] {
        assert!(matches!(
            config.capabilities(),
            Err(CapabilityError::Range { .. })
        ));
    }
    for config in [
        Config {
            iotlb_offset: 0xe0,
            ..d()
        },
        Config {
            iotlb_offset: 0xf8,
            ..d()
        },
        Config {
            iotlb_offset: 0x220,
            ..d()
        },
        Config {
            fault_record_offset: 0x4000,
            ..d()
        },
        Config {
            fault_record_offset: 0xf0,
            ..d()
        },
    ] {
        assert!(matches!(
            config.capabilities(),
            Err(CapabilityError::Offset { .. })
        ));
    }
}

#[test]
fn the_register_window_covers_every_block() {
    let bytes = |config: Config| config.capabilities().unwrap().register_bytes();
    assert_eq!(bytes(Config::default()), 0x1000);
    assert_eq!(bytes(Config::default().on_second_page()), 0x2000);
    let many = Config {
        fault_records: 256,
        ..Config::default()
    };
    assert_eq!(bytes(many), 0x2000);
}
