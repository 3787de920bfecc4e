//! Packets in both directions, and front ends that do not keep to the rules.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

use std::sync::Arc;

use grant_table::foreign::InProcess;
use grant_table::frame::Frame;
use grant_table::guest::{Access, Grants};
use grant_table::hypervisor::{DomainConfig, Hypervisor, Pages};
use grant_table::net::{
    Checksum, Delivery, Fragment, NetBack, NetError, NetFront, Network, Packet, Segmentation,
    Transport, complete_checksum,
};
use grant_table::ring::Front;
use grant_table::spec::DomId;
use grant_table::spec::grant::GrantRef;
use grant_table::spec::net::{TxFlags, TxRequest, TxResponse, status};
use proptest::prelude::*;
use zerocopy::FromBytes as _;

struct World {
    pages: Arc<Pages>,
    grants: Grants,
    rings: [Vec<Frame>; 2],
    back: NetBack<InProcess>,
}

impl World {
    fn new() -> Self {
        let hypervisor = Arc::new(Hypervisor::new());
        let (pages, own) = (
            Arc::new(Pages::new(64, 64, 64)),
            Arc::new(Pages::new(8, 1, 1)),
        );
        hypervisor
            .create(DomId(1), DomainConfig::default(), Arc::clone(&pages))
            .unwrap();
        hypervisor
            .create(DomId(0), DomainConfig::default(), Arc::clone(&own))
            .unwrap();
        let table = hypervisor
            .caller(DomId(1), 0)
            .unwrap()
            .setup_table(DomId::SELF, 1)
            .unwrap();
        let foreign = InProcess::new(hypervisor, DomId(0), own, 0, 1..8);
        let rings = [0, 1].map(|page| vec![pages.reach(page).unwrap().0]);
        let [transmit, receive] = rings.clone();
        let back = NetBack::new(transmit, receive, DomId(1), foreign).unwrap();
        Self {
            pages,
            grants: Grants::new(table),
            rings,
            back,
        }
    }

    fn front(&self) -> NetFront {
        let [transmit, receive] = self.rings.clone();
        NetFront::new(transmit, receive).unwrap()
    }

    fn grant(&self, page: u64, access: Access) -> GrantRef {
        let reference = self.grants.allocate().unwrap();
        self.grants
            .grant(reference, DomId(0), page, access)
            .unwrap();
        reference
    }

    fn serve(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        self.back.serve(|packet| packets.push(packet)).unwrap();
        packets
    }
}

#[test]
fn a_packet_in_parts_is_put_together() {
    let mut world = World::new();
    let mut front = world.front();
    let fragments: Vec<_> = (2..5u64)
        .map(|page| {
            assert!(
                world
                    .pages
                    .reach(page)
                    .unwrap()
                    .0
                    .write(page as usize, &[page as u8; 100])
            );
            Fragment {
                reference: world.grant(page, Access::ReadOnly),
                offset: page as u16,
                size: 100,
            }
        })
        .collect();
    let segmentation = Some(Segmentation {
        size: 1448,
        kind: 1,
    });
    assert!(
        front
            .send(20, &fragments, Checksum::Blank, segmentation)
            .unwrap()
    );
    let bytes = [[2; 100], [3; 100], [4; 100]].concat();
    assert_eq!(
        world.serve(),
        [Packet {
            bytes,
            checksum: Checksum::Blank,
            segmentation
        }]
    );
    let answers: Vec<_> = std::iter::from_fn(|| front.sent().unwrap()).collect();
    assert_eq!(answers, [(20, true), (21, true), (22, true)]);
    for fragment in fragments {
        world.grants.end(fragment.reference).unwrap();
    }
}

#[test]
fn a_packet_reaches_the_pages_on_offer() {
    let mut world = World::new();
    let mut front = world.front();
    let packet = Packet {
        bytes: (0..9000u32).map(|i| i as u8).collect(),
        checksum: Checksum::Validated,
        segmentation: Some(Segmentation {
            size: 1000,
            kind: 2,
        }),
    };
    let pages = [2, 3, 4, 5].map(|page| world.grant(page, Access::ReadWrite));
    for (id, &page) in (2..5).zip(&pages) {
        assert_eq!(world.back.deliver(&packet), Ok(Delivery::NoRoom));
        assert!(front.offer(id, page).unwrap(), "it waits for another page");
    }
    assert_eq!(world.back.deliver(&packet), Ok(Delivery::NoRoom));
    front.offer(5, pages[3]).unwrap();
    assert_eq!(
        world.back.deliver(&packet),
        Ok(Delivery::Done { notify: true })
    );
    let received = front.receive().unwrap().unwrap();
    assert!(!received.broken);
    assert_eq!(
        (received.checksum, received.segmentation),
        (packet.checksum, packet.segmentation)
    );
    let mut bytes = Vec::new();
    for (id, range) in received.parts {
        let mut part = vec![0; range.len()];
        assert!(
            world
                .pages
                .reach(id.into())
                .unwrap()
                .0
                .read(range.start, &mut part)
        );
        bytes.extend(part);
    }
    assert_eq!(bytes, packet.bytes);
    assert_eq!(front.receive(), Ok(None));

    let read_only = world.grant(6, Access::ReadOnly);
    front.offer(6, read_only).unwrap();
    let small = Packet {
        bytes: vec![1; 60],
        ..Packet::default()
    };
    assert!(matches!(
        world.back.deliver(&small),
        Ok(Delivery::Done { .. })
    ));
    assert!(front.receive().unwrap().unwrap().broken);
}

#[test]
fn slots_that_make_no_sense_are_answered() {
    let more = TxFlags::MORE_DATA.bits();
    // The first reference of a table.
    let slot = |flags, offset, size| TxRequest {
        reference: GrantRef(8),
        offset,
        flags,
        id: 1,
        size,
    };
    let cases = [
        vec![slot(0, 0, 13)],
        vec![slot(0, 4090, 60)],
        vec![slot(0, u16::MAX, 60)],
        vec![slot(more, 0, 60), slot(0, 0, 60)],
        vec![slot(more, 0, 60), slot(0, 0, u16::MAX)],
        vec![TxRequest {
            reference: GrantRef(99),
            ..slot(0, 0, 60)
        }],
        (0..19)
            .map(|i| {
                slot(
                    if i < 18 { more } else { 0 },
                    0,
                    if i == 0 { 190 } else { 10 },
                )
            })
            .collect(),
    ];
    for slots in cases {
        let mut world = World::new();
        let page = world.grant(2, Access::ReadOnly);
        let mut front = Front::<TxRequest, TxResponse>::new(world.rings[0].clone()).unwrap();
        slots.iter().for_each(|slot| front.request(slot).unwrap());
        let _notify = front.publish();
        assert_eq!(world.serve(), [], "{slots:?}");
        for _ in &slots {
            assert_eq!(front.take().unwrap().unwrap().status, status::ERROR);
        }
        world.grants.end(page).unwrap();
    }
}

#[test]
fn packets_without_an_end_break_the_connection() {
    for slots in [1, 60] {
        let mut world = World::new();
        let mut front = Front::<TxRequest, TxResponse>::new(world.rings[0].clone()).unwrap();
        for _ in 0..slots {
            front
                .request(&TxRequest {
                    flags: TxFlags::MORE_DATA.bits(),
                    ..TxRequest::default()
                })
                .unwrap();
        }
        let _notify = front.publish();
        assert_eq!(world.back.serve(|_| {}), Err(NetError::Endless));
    }
}

/// An Ethernet frame: its type or tags, and what follows, in parts.
fn frame(parts: &[&[u8]]) -> Vec<u8> {
    [&[0; 12], parts.concat().as_slice()].concat()
}

fn ipv4(words: u8, fragment: [u8; 2], protocol: u8) -> Vec<u8> {
    let mut header = vec![0; usize::from(words) * 4];
    header[0] = 0x40 | words;
    header[6..8].copy_from_slice(&fragment);
    header[9] = protocol;
    header
}

fn ipv6(next: u8) -> Vec<u8> {
    let mut header = vec![0; 40];
    header[0] = 0x60;
    header[6] = next;
    header
}

fn tcp(words: u8) -> Vec<u8> {
    let mut header = vec![0; usize::from(words) * 4];
    header[12] = words << 4;
    header
}

#[test]
fn transport_headers_are_found() {
    let found = |packet: &[u8], network, tcp, start, payload| {
        let checksum = start + if tcp { 16 } else { 6 };
        let expected = Transport {
            network,
            tcp,
            start,
            checksum,
            payload,
        };
        assert_eq!(Transport::of(packet), Some(expected), "{packet:x?}");
        for end in 0..payload {
            assert_eq!(Transport::of(&packet[..end]), None, "cut off at {end}");
        }
    };
    // "Do not fragment" is no fragment.
    let (plain, options) = (ipv4(5, [0x40, 0], 6), ipv4(15, [0, 0], 17));
    found(
        &frame(&[&[8, 0], &plain, &tcp(8), b"data"]),
        Network::Ipv4,
        true,
        34,
        66,
    );
    found(
        &frame(&[&[0x81, 0, 0, 7, 8, 0], &options, &[0; 8]]),
        Network::Ipv4,
        false,
        78,
        86,
    );
    found(
        &frame(&[&[0x86, 0xdd], &ipv6(17), &[0; 8]]),
        Network::Ipv6,
        false,
        54,
        62,
    );
    // Hop-by-hop options of 16 bytes, an authentication header of 12.
    let (hop, auth) = (
        [&[51u8, 1][..], &[0; 14]].concat(),
        [&[6u8, 1][..], &[0; 10]].concat(),
    );
    found(
        &frame(&[&[0x86, 0xdd], &ipv6(0), &hop, &auth, &tcp(5)]),
        Network::Ipv6,
        true,
        82,
        102,
    );
    for none in [
        frame(&[&[8, 6], &[0; 60]]),
        frame(&[&[8, 0], &ipv4(5, [0x20, 0], 6), &tcp(5)]),
        frame(&[&[8, 0], &ipv4(5, [0, 1], 6), &tcp(5)]),
        frame(&[&[8, 0], &ipv4(5, [0, 0], 1), &[0; 60]]),
        frame(&[&[8, 0], &[0x44; 20], &[0; 60]]),
        frame(&[&[8, 0], &ipv4(5, [0, 0], 6), &[0; 60]]),
        frame(&[&[0x86, 0xdd], &ipv6(44), &[0; 60]]),
    ] {
        assert_eq!(Transport::of(&none), None, "{none:x?}");
    }
}

#[test]
fn a_checksum_is_completed() {
    // RFC 1071, section 3, behind a byte that is not covered and before one that has no pair.
    let mut packet = [
        0xff, 0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7, 0, 0, 0x10,
    ];
    assert!(complete_checksum(&mut packet, 1, 9));
    let sum: u32 = 0xddf2 + 0x1000;
    let [high, low] = (!u16::try_from(sum).unwrap()).to_be_bytes();
    assert_eq!(packet[9..11], [high, low]);
    // What sums up to all ones is never sent as none.
    let mut packet = [0xff, 0xff, 0, 0];
    assert!(complete_checksum(&mut packet, 0, 2));
    assert_eq!(packet[2..], [0xff, 0xff]);
    assert!(!complete_checksum(&mut packet, 5, 0));
    assert!(!complete_checksum(&mut packet, 0, 3));
    assert!(!complete_checksum(&mut packet, 0, usize::MAX));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any slots: packets are no longer than they say, and no page stays in use.
    #[test]
    fn any_slots_are_survived(slots in prop::collection::vec(prop::collection::vec(0u8..16, 12), 1..60)) {
        let mut world = World::new();
        let pages: Vec<_> = (2..12).map(|page| world.grant(page, Access::ReadOnly)).collect();
        let mut front = Front::<TxRequest, TxResponse>::new(world.rings[0].clone()).unwrap();
        for slot in &slots {
            front.request(&TxRequest::read_from_bytes(slot).unwrap()).unwrap();
        }
        let _notify = front.publish();
        let _result = world.back.serve(|packet| assert!(packet.bytes.len() >= 14));
        for page in pages {
            world.grants.end(page).unwrap();
        }
    }

    /// A transport header lies in its packet, whatever that is.
    #[test]
    fn transport_headers_are_in_their_packets(
        kind in prop::sample::select(vec![[8u8, 0], [0x86, 0xdd], [0x81, 0]]),
        rest in prop::collection::vec(prop_oneof![Just(0u8), Just(6), Just(0x45), Just(60), any::<u8>()], 0..120),
    ) {
        let packet = frame(&[&kind, &rest]);
        if let Some(found) = Transport::of(&packet) {
            assert!(found.start >= 34 && found.start < found.checksum);
            assert!(found.checksum + 2 <= found.payload && found.payload <= packet.len());
        }
    }
}
