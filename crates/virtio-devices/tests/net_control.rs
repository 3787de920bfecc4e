//! Commands of the network device's control queue (Virtio 1.3, §5.1.6.5).

use proptest::prelude::*;
use virtio_devices::net::spec::Features;
use virtio_devices::net::{Command, MacAddress, RxMode};

const ALL: Features = Features::all();

#[test]
fn each_command_parses() {
    let mac = [2, 0, 0, 0, 0, 1];
    let group = [0x33, 0x33, 0, 0, 0, 1];
    let tables = [&[1, 0, 1, 0, 0, 0][..], &mac, &[1, 0, 0, 0], &group].concat();
    for (bytes, command) in [
        (&[0, 0, 1][..], Command::RxMode(RxMode::PROMISC, true)),
        (&[0, 1, 0], Command::RxMode(RxMode::ALLMULTI, false)),
        (&[0, 2, 1], Command::RxMode(RxMode::ALLUNI, true)),
        (&[0, 3, 1], Command::RxMode(RxMode::NOMULTI, true)),
        (&[0, 4, 1], Command::RxMode(RxMode::NOUNI, true)),
        (&[0, 5, 1], Command::RxMode(RxMode::NOBCAST, true)),
        (
            &tables,
            Command::MacTables {
                unicast: &[mac],
                multicast: &[group],
            },
        ),
        (
            &[1, 1, 2, 0, 0, 0, 0, 1],
            Command::MacAddress(MacAddress(mac)),
        ),
        (&[2, 0, 5, 1], Command::Vlan(0x105, true)),
        (&[2, 1, 5, 1], Command::Vlan(0x105, false)),
        (&[4, 0, 3, 0], Command::QueuePairs(3)),
        (
            &[5, 0, 0x82, 0, 0, 0, 0, 0, 0, 0],
            Command::GuestOffloads(Features::GUEST_CSUM | Features::GUEST_TSO4),
        ),
    ] {
        assert_eq!(Command::parse(bytes, ALL), Ok(command), "{bytes:?}");
        // One byte more or less is another command.
        assert!(
            Command::parse(&bytes[..bytes.len() - 1], ALL).is_err(),
            "{bytes:?}"
        );
        assert!(
            Command::parse(&[bytes, &[0]].concat(), ALL).is_err(),
            "{bytes:?}"
        );
        // So is a feature that was not negotiated.
        assert!(
            Command::parse(bytes, Features::CTRL_VQ).is_err(),
            "{bytes:?}"
        );
    }
}

/// THREATS "host allocation or loop from an inflated length" (Firecracker 4392a8d19, CVE-2016-5403): a table's length is
/// only believed if that many addresses follow.
#[test]
fn an_inflated_table_length_is_refused() {
    for length in [1u32, 2, 0x2aaa_aaab, 0x8000_0000, u32::MAX] {
        let unicast = [&[1, 0][..], &length.to_le_bytes(), &[0; 4]].concat();
        assert!(Command::parse(&unicast, ALL).is_err(), "{length}");
        let multicast = [&[1, 0, 0, 0, 0, 0][..], &length.to_le_bytes()].concat();
        assert!(Command::parse(&multicast, ALL).is_err(), "{length}");
    }
}

#[test]
fn offloads_beyond_those_negotiated_are_refused() {
    let tso6 = [5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    let negotiated = Features::CTRL_GUEST_OFFLOADS | Features::GUEST_CSUM;
    assert!(Command::parse(&tso6, negotiated).is_err());
    assert!(Command::parse(&tso6, negotiated | Features::GUEST_TSO6).is_ok());
    // Bit 0 is an offload, but not of this direction.
    assert!(Command::parse(&[5, 0, 1, 0, 0, 0, 0, 0, 0, 0], ALL).is_err());
}

proptest! {
    #[test]
    fn arbitrary_commands_do_not_panic(
        class in 0u8..7, command in 0u8..7,
        data in proptest::collection::vec(any::<u8>(), 0..64),
        features: u64,
    ) {
        let bytes = [&[class, command][..], &data].concat();
        let _ = Command::parse(&bytes, Features::from_bits_truncate(features));
    }
}
