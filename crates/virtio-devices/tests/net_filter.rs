//! Which frames reach the driver (Virtio 1.3, §5.1.6.5.1 to §5.1.6.5.3).

use proptest::prelude::*;
use virtio_devices::net::spec::Features;
use virtio_devices::net::{MacAddress, RxFilter, RxMode, TABLE_SIZE};

const OWN: MacAddress = MacAddress([2, 0, 0, 0, 0, 1]);
const OTHER: MacAddress = MacAddress([2, 0, 0, 0, 0, 2]);
const GROUP: MacAddress = MacAddress([0x33, 0x33, 0, 0, 0, 1]);

fn frame(to: MacAddress, vlan: Option<u16>) -> Vec<u8> {
    let mut frame = to.0.to_vec();
    frame.extend([2, 0, 0, 0, 0, 9]);
    if let Some(vlan) = vlan {
        frame.extend([0x81, 0]);
        frame.extend(vlan.to_be_bytes());
    }
    frame.extend([8, 0]);
    frame
}

fn selective() -> RxFilter {
    RxFilter {
        mode: RxMode::empty(),
        ..RxFilter::new(OWN)
    }
}

fn numbered(n: u16) -> Vec<[u8; 6]> {
    let address = |i: u16| {
        let [high, low] = i.to_be_bytes();
        [2, 1, 0, 0, high, low]
    };
    (0..n).map(address).collect()
}

#[test]
fn a_driver_that_sets_no_mode_receives_everything() {
    let filter = RxFilter::new(OWN);
    assert!(filter.accepts(&frame(OTHER, Some(7))));
}

#[test]
fn selective_reception_takes_own_address_and_broadcast() {
    let filter = selective();
    assert!(filter.accepts(&frame(OWN, None)));
    assert!(filter.accepts(&frame(MacAddress::BROADCAST, None)));
    assert!(!filter.accepts(&frame(OTHER, None)));
    assert!(!filter.accepts(&frame(GROUP, None)));
}

#[test]
fn tables_add_addresses_and_replace_each_other() {
    let mut filter = selective();
    filter.set_tables(&[OTHER.0], &[GROUP.0]);
    assert!(filter.accepts(&frame(OTHER, None)) && filter.accepts(&frame(GROUP, None)));
    filter.set_tables(&[], &[]);
    assert!(!filter.accepts(&frame(OTHER, None)) && !filter.accepts(&frame(GROUP, None)));
}

#[test]
fn a_table_that_does_not_fit_lets_its_kind_pass() {
    let full = u16::try_from(TABLE_SIZE).unwrap();
    let mut filter = selective();
    filter.set_tables(&numbered(full), &[]);
    assert!(!filter.accepts(&frame(OTHER, None)));
    filter.set_tables(&numbered(full + 1), &[]);
    assert!(filter.accepts(&frame(OTHER, None)));
    assert!(!filter.accepts(&frame(GROUP, None)));
}

#[test]
fn a_negotiated_vlan_filter_starts_empty_and_ignores_priority_bits() {
    let mut filter = selective();
    assert!(filter.accepts(&frame(OWN, Some(5))));
    filter.negotiate(Features::CTRL_VLAN);
    assert!(!filter.accepts(&frame(OWN, Some(5))));
    assert!(filter.accepts(&frame(OWN, None)));
    assert!(filter.set_vlan(5, true));
    assert!(filter.accepts(&frame(OWN, Some(5 | 0xe000))));
    assert!(filter.set_vlan(5, false));
    assert!(!filter.accepts(&frame(OWN, Some(5))));
    assert!(!filter.set_vlan(4096, true));
}

#[test]
fn addresses_parse_as_they_print() {
    assert_eq!("02:00:00:00:00:01".parse::<MacAddress>().unwrap(), OWN);
    for bad in [
        "",
        "02:00:00:00:00",
        "02:00:00:00:00:01:02",
        "2:0:0:0:0:1",
        "+2:00:00:00:00:01",
        "02:00:00:00:00:0g",
    ] {
        assert!(bad.parse::<MacAddress>().is_err(), "{bad}");
    }
}

/// The decision as a table: of the flags that concern the destination's kind, suppression wins over reception.
fn model(mode: RxMode, to: MacAddress, listed: bool) -> bool {
    let (deny, allow, by_default) = match to {
        MacAddress::BROADCAST => (RxMode::NOBCAST, RxMode::empty(), true),
        to if to.0[0] % 2 == 1 => (RxMode::NOMULTI, RxMode::ALLMULTI, listed),
        to => (RxMode::NOUNI, RxMode::ALLUNI, listed || to == OWN),
    };
    mode.contains(RxMode::PROMISC)
        || (!mode.intersects(deny) && (mode.intersects(allow) || by_default))
}

proptest! {
    #[test]
    fn every_mode_follows_the_table(
        bits in 0u8..64,
        to in prop_oneof![Just(OWN), Just(OTHER), Just(GROUP), Just(MacAddress::BROADCAST)],
        listed: bool,
    ) {
        let mode = RxMode::from_bits_truncate(bits);
        let mut filter = RxFilter { mode, ..RxFilter::new(OWN) };
        if listed {
            filter.set_tables(&[OTHER.0], &[GROUP.0]);
        }
        prop_assert_eq!(filter.accepts(&frame(to, None)), model(mode, to, listed));
    }

    #[test]
    fn no_frame_panics_and_none_without_a_header_passes(
        bits in 0u8..64,
        bytes in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut filter = RxFilter { mode: RxMode::from_bits_truncate(bits), ..RxFilter::new(OWN) };
        filter.negotiate(Features::CTRL_VLAN);
        prop_assert!(!filter.accepts(&bytes) || bytes.len() >= 14);
    }
}
