//! What a guest sees of a device's configuration space, and what reaches the device.
#![expect(clippy::unwrap_used, reason = "test code")]

mod vf;

use pio_mmio_bus::pci::BarKind;
use pio_mmio_bus::pci::spec::Command;
use proptest::prelude::*;
use sriov_vfio::capability::{ExtendedCapabilities, SriovCapability};
use sriov_vfio::spec::sriov::Header;
use sriov_vfio::vfio::{
    ConfigPolicyError, MsiPlace, MsixPlace, PhysicalBar, Policy, VirtualConfig,
};
use vf::{EXPRESS, MSI, MSIX, POWER, VENDOR, config, put};

const KIND: BarKind = BarKind::Memory64 { prefetchable: true };
const BARS: [PhysicalBar; 2] = [
    PhysicalBar {
        index: 0,
        kind: KIND,
        size: 0x4000,
    },
    PhysicalBar {
        index: 3,
        kind: KIND,
        size: 0x4000,
    },
];

fn shown(policy: Policy) -> VirtualConfig {
    VirtualConfig::new(&config(), &BARS, policy).unwrap()
}

/// A read, the device answering as in `config`.
fn read(shown: &VirtualConfig, offset: u16, length: usize) -> Vec<u8> {
    let mut data: Vec<u8> = config()
        .into_iter()
        .skip(offset.into())
        .take(length)
        .collect();
    data.resize(length, 0);
    shown.read(offset, &mut data);
    data
}

fn read16(shown: &VirtualConfig, offset: usize) -> u16 {
    let offset = u16::try_from(offset).unwrap();
    u16::from_le_bytes(read(shown, offset, 2).try_into().unwrap())
}

fn standard(shown: &VirtualConfig) -> Vec<(u8, usize)> {
    let config = read(shown, 0, 4096);
    let byte = |at: usize| config.get(at).copied().unwrap();
    let (mut at, mut found) = (usize::from(byte(0x34)), Vec::new());
    while at != 0 {
        found.push((byte(at), at));
        at = byte(at + 1).into();
    }
    found
}

fn extended(shown: &VirtualConfig) -> Vec<u16> {
    let config = read(shown, 0, 4096);
    ExtendedCapabilities::new(&config)
        .map(|item| item.unwrap().1.id())
        .collect()
}

#[test]
fn the_header_is_the_vmms() {
    let policy = Policy {
        identity: Some((0x1234, 0x5678)),
        ..Policy::default()
    };
    let mut shown = shown(policy);
    assert_eq!(read(&shown, 0, 4), [0x34, 0x12, 0x78, 0x56]);
    assert_eq!(read(&shown, 8, 4), [1, 0, 0, 2]);
    // No pin unless the VMM delivers it.
    assert_eq!(read(&shown, 0x3d, 1), [0]);
    let pin = Policy {
        intx: true,
        ..policy
    };
    assert_eq!(
        read(&VirtualConfig::new(&config(), &BARS, pin).unwrap(), 0x3d, 1),
        [1]
    );
    // BARs are sized and placed here and never at the device.
    let effects = shown.write(0x10, &[0xff; 8]);
    assert_eq!(
        (read(&shown, 0x10, 8), effects.forwarded),
        (
            [0x0c, 0xc0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff].to_vec(),
            vec![]
        )
    );
    shown.write(0x10, &0x1_e000_0000_u64.to_le_bytes());
    assert_eq!(shown.bar_base(&BARS[0]), None);
    // Memory stays here, bus mastering goes to the device.
    let effects = shown.write(4, &0xffff_u16.to_le_bytes());
    assert_eq!(effects.forwarded, [(4, vec![0xff, 0xff], vec![0x04, 0x04])]);
    assert_eq!(shown.bar_base(&BARS[0]), Some(0x1_e000_0000));
    assert_eq!(
        shown.command(),
        Command::MEMORY
            | Command::BUS_MASTER
            | Command::PARITY
            | Command::SERR
            | Command::INTX_DISABLE
    );
}

#[test]
fn what_a_guest_cannot_use_is_hidden() {
    let shown = shown(Policy::default());
    assert_eq!(
        standard(&shown),
        [
            (1, POWER),
            (5, MSI),
            (0x11, MSIX),
            (0x10, EXPRESS),
            (9, VENDOR)
        ]
    );
    // ARI, which is first, is hidden: an empty header holds its place.
    assert_eq!(extended(&shown), [0, 1, 3]);
    assert_eq!(read(&shown, 0x104, 4), [0; 4]);
    assert_eq!(SriovCapability::find(&read(&shown, 0, 4096)), Ok(None));
    let mut shown = shown;
    for offset in (0x160..0x1d0).step_by(4) {
        assert_eq!(shown.write(offset, &[0xff; 4]).forwarded, []);
        assert_eq!(read(&shown, offset, 4), [0; 4]);
    }
}

#[test]
fn what_is_asked_for_is_shown() {
    let policy = Policy {
        sriov: true,
        ats: true,
        pasid: true,
        resizable_bar: true,
        ..Policy::default()
    };
    assert_eq!(extended(&shown(policy)), [0, 1, 0x10, 0xf, 0x1b, 0x15, 3]);
    assert_eq!(read(&shown(policy), 0x164, 4), [0x77; 4]);
}

#[test]
fn a_function_level_reset_is_the_hosts_to_do() {
    let mut shown = shown(Policy::default());
    shown.write(4, &[6, 0]);
    let control = u16::try_from(EXPRESS + 8).unwrap();
    assert_eq!(
        shown.write(control, &0x2810_u16.to_le_bytes()),
        Default::default()
    );
    let effects = shown.write(control, &0xa810_u16.to_le_bytes());
    assert!(effects.reset && effects.forwarded.is_empty());
    assert_eq!(
        (shown.command(), read16(&shown, EXPRESS + 8)),
        (Command::empty(), 0x2810)
    );
    // Errors are cleared at the device, four bits of them.
    let effects = shown.write(control + 2, &[0xff, 0xff]);
    assert_eq!(effects.forwarded, [(control + 2, vec![0xff], vec![0x0f])]);
}

#[test]
fn power_states_and_link_control_mean_nothing() {
    let mut shown = shown(Policy::default());
    assert_eq!(read16(&shown, POWER + 2), 0x0023);
    assert_eq!(
        shown
            .write(u16::try_from(POWER + 4).unwrap(), &[0xff; 4])
            .forwarded,
        []
    );
    assert_eq!(read16(&shown, POWER + 4), 0x000b);
    assert_eq!(
        shown
            .write(u16::try_from(EXPRESS + 0x10).unwrap(), &[0xff; 2])
            .forwarded,
        []
    );
}

#[test]
fn msix_is_the_vmms() {
    let mut shown = shown(Policy::default());
    let place = MsixPlace {
        capability: MSIX,
        vectors: 3,
        table: (3, 0),
        pending: (3, 0x2000),
    };
    assert_eq!(shown.msix(), Some(place));
    assert_eq!(
        shown
            .write(u16::try_from(MSIX + 2).unwrap(), &[0xff; 10])
            .forwarded,
        []
    );
    assert_eq!(read16(&shown, MSIX + 2), 0xc002);
    assert_eq!(read16(&shown, MSIX + 4), 3);
}

/// MSI has four forms (PCIe §7.7.1): what lies behind a short one is not its own.
#[test]
fn msi_is_the_vmms_in_each_of_its_forms() {
    let at = |offset: usize| u16::try_from(MSI + offset).unwrap();
    for (form, data, masks) in [
        (0_u16, 8, None),
        (0x80, 12, None),
        (0x100, 8, Some(12)),
        (0x180, 12, Some(16)),
    ] {
        let mut config = config();
        // Four vectors; what the host had enabled is not the guest's.
        put(&mut config, MSI + 2, &(form | 0x25).to_le_bytes());
        put(&mut config, MSI + 4, &[0xee; 20]);
        let mut shown = VirtualConfig::new(&config, &BARS, Policy::default()).unwrap();
        let place = MsiPlace {
            capability: MSI,
            vectors: 4,
            address_64: form & 0x80 != 0,
            masking: form & 0x100 != 0,
        };
        assert_eq!(shown.msi(), Some(place));
        assert_eq!(read16(&shown, MSI + 2), form | 4);
        assert_eq!(read(&shown, at(4), 20), [0; 20]);
        assert_eq!(shown.write(at(2), &[0xff; 22]).forwarded, []);
        assert_eq!(read16(&shown, MSI + 2), form | 0x75);
        assert_eq!(read(&shown, at(4), 4), [0xfc, 0xff, 0xff, 0xff]);
        let mut rest = vec![0; 16];
        put(&mut rest, data - 8, &[0xff; 2]);
        if data == 12 {
            put(&mut rest, 0, &[0xff; 4]);
        }
        if let Some(masks) = masks {
            put(&mut rest, masks - 8, &[0x0f]);
        }
        assert_eq!(read(&shown, at(8), 16), rest, "form {form:#x}");
        shown.limit_msi(2);
        assert_eq!(read16(&shown, MSI + 2), form | 0x73);
        shown.reset();
        assert_eq!(read16(&shown, MSI + 2), form | 2);
    }
}

#[test]
fn vendor_registers_go_to_the_device() {
    let mut shown = shown(Policy::default());
    let at = u16::try_from(VENDOR + 4).unwrap();
    assert_eq!(read(&shown, at, 4), [1, 2, 3, 4]);
    assert_eq!(
        shown.write(at, &[9; 4]).forwarded,
        [(at, vec![9; 4], vec![0xff; 4])]
    );
    // No further than the capability says.
    assert_eq!(shown.write(at + 4, &[9; 4]).forwarded, []);
}

/// A vendor's capability that claims to be long would open what lies behind it.
#[test]
fn a_capability_ends_where_another_begins() {
    let mut config = config();
    put(
        &mut config,
        0x110,
        &Header::new(0xb, 1, 0x160).0.to_le_bytes(),
    );
    put(&mut config, 0x114, &0xfff0_0000_u32.to_le_bytes());
    let mut shown = VirtualConfig::new(&config, &BARS, Policy::default()).unwrap();
    assert_eq!(shown.write(0x15c, &[1; 4]).forwarded.len(), 1);
    assert_eq!(shown.write(0x168, &[1; 4]).forwarded, []);
}

#[test]
fn devices_that_cannot_be_shown() {
    let with = |offset, bytes: &[u8]| {
        let mut config = config();
        put(&mut config, offset, bytes);
        VirtualConfig::new(&config, &BARS, Policy::default()).map(drop)
    };
    assert_eq!(with(0x0e, &[1]), Err(ConfigPolicyError::Header(1)));
    assert_eq!(with(0x0e, &[0x80]), Ok(()));
    assert_eq!(
        with(VENDOR + 1, &[0x40]),
        Err(ConfigPolicyError::Capabilities(0x40))
    );
    assert_eq!(
        with(VENDOR + 1, &[0x10]),
        Err(ConfigPolicyError::Capabilities(0x10))
    );
    assert!(matches!(
        with(MSIX + 4, &[1]),
        Err(ConfigPolicyError::Msix(_))
    ));
    assert!(matches!(
        with(MSIX + 4, &[3, 0x40]),
        Err(ConfigPolicyError::Msix(_))
    ));
    assert!(matches!(
        with(0x1d0, &Header::new(3, 1, 0x100).0.to_le_bytes()),
        Err(ConfigPolicyError::Extended(_))
    ));
    let bar = PhysicalBar {
        index: 5,
        ..BARS[0]
    };
    let built = VirtualConfig::new(&config(), &[bar], Policy::default());
    assert_eq!(built.map(drop), Err(ConfigPolicyError::Bar(bar)));
}

proptest! {
    /// Whatever the device's bytes and the guest's accesses: no panic; hidden capabilities stay hidden, and nothing that the policy keeps
    /// reaches the device.
    #[test]
    fn noise_opens_nothing(
        bytes in prop::collection::vec((0..0x400_usize, any::<u8>()), 0..60),
        accesses in prop::collection::vec((any::<u16>(), prop::collection::vec(any::<u8>(), 0..9)), 0..60),
    ) {
        let mut config = config();
        for (offset, byte) in bytes {
            put(&mut config, offset, &[byte]);
        }
        let Ok(mut shown) = VirtualConfig::new(&config, &BARS, Policy::default()) else {
            return Ok(());
        };
        for (offset, data) in accesses {
            let offset = if offset & 1 == 0 { offset & 0x3ff } else { offset };
            for (at, bytes, mask) in shown.write(offset, &data).forwarded {
                prop_assert_eq!(bytes.len(), mask.len());
                prop_assert!(at >= offset && usize::from(at) + bytes.len() <= usize::from(offset) + data.len());
                for (at, mask) in (usize::from(at)..).zip(mask) {
                    // BARs, the header's rest and the SR-IOV capability where it is linked.
                    prop_assert!(at >= 0x40 || (4..8).contains(&at));
                    prop_assert!(at != 4 || mask & 0x03 == 0);
                }
            }
            let mut read = data;
            shown.read(offset, &mut read);
        }
        let mut all = config;
        shown.read(0, &mut all);
        prop_assert_eq!(SriovCapability::find(&all), Ok(None));
    }
}
