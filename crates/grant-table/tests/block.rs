//! A disk from the front end's requests to the back end's file, and front ends that do not keep to the rules.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

mod support;

use std::io;
use std::sync::Arc;

use grant_table::block::{BlockBack, BlockFront, Disk, FrontError, Limits};
use grant_table::foreign::InProcess;
use grant_table::frame::Frame;
use grant_table::guest::{Access, Grants};
use grant_table::hypervisor::{DomainConfig, Hypervisor, Pages};
use grant_table::ring::{Front, RingError};
use grant_table::spec::DomId;
use grant_table::spec::block::{Request, Response, SECTOR, Segment, op, status};
use grant_table::spec::grant::GrantRef;
use grant_table::spec::ring::REQUESTS;
use proptest::prelude::*;
use support::{bytes, header};
use zerocopy::FromBytes as _;

struct Ram {
    bytes: Vec<u8>,
    flushes: usize,
}

impl Disk for Ram {
    fn sectors(&self) -> u64 {
        (self.bytes.len() / SECTOR) as u64
    }

    fn read(&mut self, sector: u64, bytes: &mut [u8]) -> io::Result<()> {
        let at = sector as usize * SECTOR;
        bytes.copy_from_slice(&self.bytes[at..at + bytes.len()]);
        Ok(())
    }

    fn write(&mut self, sector: u64, bytes: &[u8]) -> io::Result<()> {
        let at = sector as usize * SECTOR;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flushes += 1;
        Ok(())
    }

    fn discard(&mut self, sector: u64, sectors: u64) -> io::Result<()> {
        let at = sector as usize * SECTOR;
        self.bytes[at..at + sectors as usize * SECTOR].fill(0);
        Ok(())
    }
}

const SECTORS: usize = 512;

/// Domain 1 has the disk that domain 0 serves.
struct World {
    pages: Arc<Pages>,
    grants: Grants,
    ring: Vec<Frame>,
    back: BlockBack<InProcess, Ram>,
}

impl World {
    fn new(limits: Limits) -> Self {
        let hypervisor = Arc::new(Hypervisor::new());
        let (pages, own) = (
            Arc::new(Pages::new(64, 64, 64)),
            Arc::new(Pages::new(64, 1, 1)),
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
        let foreign = InProcess::new(hypervisor, DomId(0), own, 0, 1..64);
        let ring = vec![pages.reach(0).unwrap().0];
        let disk = Ram {
            bytes: (0..SECTORS * SECTOR)
                .map(|i| (i / SECTOR % 251) as u8)
                .collect(),
            flushes: 0,
        };
        let back = BlockBack::new(ring.clone(), DomId(1), foreign, disk, limits).unwrap();
        Self {
            pages,
            grants: Grants::new(table),
            ring,
            back,
        }
    }

    fn grant(&self, page: u64, access: Access) -> GrantRef {
        let reference = self.grants.allocate().unwrap();
        self.grants
            .grant(reference, DomId(0), page, access)
            .unwrap();
        reference
    }

    /// Serves what the front end has asked, and takes the one answer.
    fn answer(&mut self, front: &mut BlockFront) -> i16 {
        let _notify = front.publish();
        assert!(self.back.serve().unwrap());
        let (_, status) = front.take().unwrap().unwrap();
        assert_eq!(front.take(), Ok(None));
        assert!(!front.finish());
        status
    }
}

const PLAIN: Limits = Limits {
    indirect_segments: 0,
    persistent: 0,
    read_only: false,
};

fn segment(reference: GrantRef, first: u8, last: u8) -> Segment {
    Segment {
        reference,
        first,
        last,
        padding: 0,
    }
}

#[test]
fn data_reaches_the_disk_and_comes_back() {
    let mut world = World::new(PLAIN);
    let mut front = BlockFront::new(world.ring.clone()).unwrap();
    let (a, b) = (
        world.grant(1, Access::ReadWrite),
        world.grant(2, Access::ReadWrite),
    );
    front
        .transfer(op::READ, 10, &[segment(a, 7, 7), segment(b, 0, 2)])
        .unwrap();
    assert_eq!(world.answer(&mut front), status::OKAY);
    assert_eq!(
        bytes(&world.pages.reach(1).unwrap().0, 7 * 512, 512),
        [10; 512]
    );
    assert_eq!(
        bytes(&world.pages.reach(2).unwrap().0, 2 * 512, 512),
        [13; 512]
    );

    assert!(world.pages.reach(1).unwrap().0.write(0, &[0xaa; 4096]));
    front.transfer(op::WRITE, 100, &[segment(a, 0, 7)]).unwrap();
    assert_eq!(world.answer(&mut front), status::OKAY);
    front.flush().unwrap();
    assert_eq!(world.answer(&mut front), status::OKAY);
    front
        .transfer(op::WRITE_BARRIER, 108, &[segment(a, 0, 0)])
        .unwrap();
    assert_eq!(world.answer(&mut front), status::OKAY);
    front.discard(104, 2).unwrap();
    assert_eq!(world.answer(&mut front), status::OKAY);
    world.grants.end(a).unwrap();
    let disk = world.back.disconnect();
    assert_eq!(disk.flushes, 3);
    assert_eq!(disk.bytes[100 * 512..104 * 512], [0xaa; 2048]);
    assert_eq!(disk.bytes[104 * 512..106 * 512], [0; 1024]);
    assert_eq!(disk.bytes[108 * 512..109 * 512], [0xaa; 512]);
}

#[test]
fn a_read_only_grant_is_enough_to_write() {
    let mut world = World::new(PLAIN);
    let mut front = BlockFront::new(world.ring.clone()).unwrap();
    let page = world.grant(1, Access::ReadOnly);
    front
        .transfer(op::WRITE, 0, &[segment(page, 0, 0)])
        .unwrap();
    assert_eq!(world.answer(&mut front), status::OKAY);
    front.transfer(op::READ, 0, &[segment(page, 0, 0)]).unwrap();
    assert_eq!(world.answer(&mut front), status::ERROR);
    world.grants.end(page).unwrap();
}

#[test]
fn many_segments_lie_in_pages_of_their_own() {
    let mut world = World::new(Limits {
        indirect_segments: 40,
        ..PLAIN
    });
    let mut front = BlockFront::new(world.ring.clone()).unwrap();
    let segments: Vec<_> = (0..40)
        .map(|i| segment(world.grant(4 + i, Access::ReadWrite), 0, 7))
        .collect();
    let list = (
        world.grant(1, Access::ReadOnly),
        world.pages.reach(1).unwrap().0,
    );
    front
        .transfer_indirect(op::READ, 5, &segments, std::slice::from_ref(&list))
        .unwrap();
    assert_eq!(world.answer(&mut front), status::OKAY);
    for i in 0..40u64 {
        let page = world.pages.reach(4 + i).unwrap().0;
        let sector = 5 + 8 * i as usize + 7;
        assert_eq!(bytes(&page, 7 * 512, 512), [(sector % 251) as u8; 512]);
    }
    let more = [segments.clone(), vec![segments[0]]].concat();
    front
        .transfer_indirect(op::READ, 5, &more, std::slice::from_ref(&list))
        .unwrap();
    assert_eq!(
        world.answer(&mut front),
        status::ERROR,
        "more than was offered"
    );
    front
        .transfer_indirect(op::FLUSH, 5, &segments, std::slice::from_ref(&list))
        .unwrap();
    assert_eq!(world.answer(&mut front), status::ERROR);
    assert_eq!(
        front.transfer(op::READ, 5, &segments),
        Err(FrontError::Segments(40))
    );
    world.grants.end(list.0).unwrap();
    for segment in segments {
        world.grants.end(segment.reference).unwrap();
    }
}

#[test]
fn persistent_grants_stay_mapped_up_to_their_limit() {
    let mut world = World::new(Limits {
        persistent: 2,
        ..PLAIN
    });
    let mut front = BlockFront::new(world.ring.clone()).unwrap();
    let references: Vec<_> = (1..4)
        .map(|page| world.grant(page, Access::ReadWrite))
        .collect();
    for _ in 0..3 {
        for &reference in &references {
            front
                .transfer(
                    op::READ,
                    3,
                    &[segment(reference, 0, 7), segment(reference, 0, 0)],
                )
                .unwrap();
            assert_eq!(world.answer(&mut front), status::OKAY);
        }
    }
    let used = |world: &World| {
        references
            .iter()
            .filter(|&&one| world.grants.is_used(one).unwrap())
            .count()
    };
    assert!((1..=2).contains(&used(&world)));
    let World { grants, back, .. } = world;
    back.disconnect();
    for &reference in &references {
        grants.end(reference).unwrap();
    }
}

#[test]
fn requests_that_break_the_rules_are_answered() {
    let mut world = World::new(PLAIN);
    let mut front = BlockFront::new(world.ring.clone()).unwrap();
    let page = world.grant(1, Access::ReadWrite);
    let last = SECTORS as u64 - 1;
    let cases = [
        (op::READ, 0, vec![]),
        (op::READ, 0, vec![segment(page, 3, 2)]),
        (op::READ, 0, vec![segment(page, 0, 8)]),
        (op::READ, 0, vec![segment(page, 255, 255)]),
        (op::READ, last, vec![segment(page, 0, 1)]),
        (op::READ, u64::MAX, vec![segment(page, 0, 0)]),
        (op::WRITE, 0, vec![segment(GrantRef(77), 0, 0)]),
        (
            op::WRITE,
            0,
            vec![segment(page, 0, 0), segment(GrantRef(u32::MAX), 0, 0)],
        ),
        (op::INDIRECT, 0, vec![segment(page, 0, 0)]),
    ];
    for (operation, sector, segments) in cases {
        front.transfer(operation, sector, &segments).unwrap();
        assert_eq!(
            world.answer(&mut front),
            status::ERROR,
            "{operation} {sector} {segments:?}"
        );
    }
    front.transfer(99, 0, &[]).unwrap();
    assert_eq!(world.answer(&mut front), status::NOT_SUPPORTED);
    front.discard(last, 2).unwrap();
    assert_eq!(world.answer(&mut front), status::ERROR);
    front.discard(u64::MAX, u64::MAX).unwrap();
    assert_eq!(world.answer(&mut front), status::ERROR);
    front
        .transfer(op::READ, last, &[segment(page, 0, 0)])
        .unwrap();
    assert_eq!(world.answer(&mut front), status::OKAY);
    world.grants.end(page).unwrap();

    let mut world = World::new(Limits {
        read_only: true,
        ..PLAIN
    });
    let mut front = BlockFront::new(world.ring.clone()).unwrap();
    let page = world.grant(1, Access::ReadWrite);
    for operation in [op::WRITE, op::WRITE_BARRIER] {
        front
            .transfer(operation, 0, &[segment(page, 0, 0)])
            .unwrap();
        assert_eq!(world.answer(&mut front), status::ERROR);
    }
    front.discard(0, 1).unwrap();
    assert_eq!(world.answer(&mut front), status::ERROR);
    assert_eq!(header(&world.grants, page).flags.bits(), 1);
}

#[test]
fn a_broken_ring_is_reported() {
    let mut world = World::new(PLAIN);
    world.ring[0]
        .u32(REQUESTS)
        .unwrap()
        .store(100, std::sync::atomic::Ordering::SeqCst);
    assert!(matches!(
        world.back.serve(),
        Err(RingError::Overflow { index: 100, .. })
    ));
}

/// XSA-396: a front end does not trust its back end either.
#[test]
fn answers_that_nobody_asked_for_are_refused() {
    let pages = vec![Frame::allocate()];
    let mut front = BlockFront::new(pages.clone()).unwrap();
    let mut back = grant_table::ring::Back::<Request, Response>::new(pages).unwrap();
    front.flush().unwrap();
    front.flush().unwrap();
    let _notify = front.publish();
    back.take().unwrap();
    back.take().unwrap();
    let answer = Response {
        operation: op::FLUSH,
        ..Response::default()
    };
    back.respond(&answer).unwrap();
    back.respond(&answer).unwrap();
    let _notify = back.publish();
    assert_eq!(front.take(), Ok(Some((0, 0))));
    assert_eq!(front.take(), Err(FrontError::Id(0)), "twice");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any bytes are requests: each is answered, nothing stays mapped, and nothing but the disk's size is trusted.
    #[test]
    fn any_request_is_answered(slots in prop::collection::vec(prop::collection::vec(0u8..12, 112), 1..20)) {
        let mut world = World::new(Limits { indirect_segments: 64, ..PLAIN });
        let mut front = Front::<Request, Response>::new(world.ring.clone()).unwrap();
        let pages: Vec<_> = (1..12).map(|page| world.grant(page, Access::ReadWrite)).collect();
        for slot in &slots {
            front.request(&Request::read_from_bytes(slot).unwrap()).unwrap();
        }
        let _notify = front.publish();
        prop_assert!(world.back.serve().unwrap());
        for slot in &slots {
            // Linux's front end gives a disk up whose answers do not name what an indirect request was about.
            let asked = if slot[0] == op::INDIRECT { slot[1] } else { slot[0] };
            prop_assert_eq!(front.take().unwrap().unwrap().operation, asked);
        }
        for page in pages {
            world.grants.end(page).unwrap();
        }
    }
}
