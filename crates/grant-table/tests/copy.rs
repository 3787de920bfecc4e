//! Copies: every kind of side, parts of pages, transitive grants, statuses.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

mod support;

use std::sync::{Arc, Mutex};
use std::thread;

use grant_table::frame::Frame;
use grant_table::guest::{Access, GrantError, Grants};
use grant_table::hypervisor::{DomainConfig, Frames, Hypervisor, Memory, Pages};
use grant_table::spec::DomId;
use grant_table::spec::grant::{Copy, CopyFlags, EntryFlags, GrantRef, MapGrantRef, Refusal};
use grant_table::table::Transitive;
use support::*;

const BOTH: CopyFlags = CopyFlags::SOURCE_REF.union(CopyFlags::DEST_REF);

#[test]
fn copies_between_all_kinds_of_sides() {
    let world = World::new();
    let (zero, two) = (world.grants(0), world.grants(2));
    let source = grant(&zero, 3, Access::ReadOnly);
    let dest = grant(&two, 4, Access::ReadWrite);
    assert!(world.page(0, 3).write(10, b"abc"));
    assert_eq!(
        world.copy(1, side(0, source.0, 10), side(2, dest.0, 4093), 3, BOTH),
        0
    );
    assert_eq!(bytes(&world.page(2, 4), 4093, 3), b"abc");
    assert_eq!(world.read(1, 0, source, 13), 0);
    assert_eq!(bytes(&world.page(1, 0), 10, 3), b"abc");
    assert_eq!(world.write(1, 2, dest, 13), 0);
    assert_eq!(bytes(&world.page(2, 4), 10, 3), b"abc");
    // Within one page, overlapping.
    assert_eq!(
        world.copy(1, own(0, 10), own(0, 11), 2, CopyFlags::empty()),
        0
    );
    assert_eq!(bytes(&world.page(1, 0), 10, 3), b"aab");
    world.assert_unused(0);
    world.assert_unused(2);
    assert!(!header(&zero, source).flags.intersects(EntryFlags::IN_USE));
}

#[test]
fn refusals_of_copying() {
    let world = World::new();
    let grants = world.grants(0);
    let reference = grant(&grants, 3, Access::ReadOnly);
    let source = CopyFlags::SOURCE_REF;
    let cases = [
        (
            side(0, 0, 0),
            own(0, 0),
            CopyFlags::empty(),
            Refusal::PermissionDenied,
        ),
        (side(9, 0, 0), own(0, 0), source, Refusal::BadDomain),
        (side(0, 512, 0), own(0, 0), source, Refusal::BadGrantRef),
        (side(0, 100, 0), own(0, 0), source, Refusal::General),
        (
            side(0, reference.0, 0),
            own(OWN, 0),
            source,
            Refusal::BadPage,
        ),
        (
            side(0, reference.0, 4089),
            own(0, 0),
            source,
            Refusal::BadCopyArgument,
        ),
        (
            side(0, reference.0, 0),
            own(0, 65535),
            source,
            Refusal::BadCopyArgument,
        ),
        (
            own(0, 0),
            side(0, reference.0, 0),
            CopyFlags::DEST_REF,
            Refusal::General,
        ),
    ];
    for (from, to, flags, refusal) in cases {
        assert_eq!(
            world.copy(1, from, to, 8, flags),
            status(refusal),
            "{from:?} {to:?}"
        );
        world.assert_unused(0);
    }
    assert!(
        !header(&grants, reference)
            .flags
            .intersects(EntryFlags::IN_USE)
    );
}

#[test]
fn parts_of_pages_are_copied_and_not_mapped() {
    let world = World::new();
    let grants = world.version2(0);
    let reference = grants.allocate().unwrap();
    grants
        .grant_range(reference, DomId(1), 3, (100, 50), Access::ReadWrite)
        .unwrap();
    let copy = |offset, length| {
        world.copy(
            1,
            side(0, reference.0, offset),
            own(0, 0),
            length,
            CopyFlags::SOURCE_REF,
        )
    };
    assert_eq!(copy(100, 50), 0);
    assert_eq!(copy(149, 1), 0);
    assert_eq!(copy(99, 2), status(Refusal::General));
    assert_eq!(copy(100, 51), status(Refusal::General));
    assert_eq!(
        world.map(1, reference, READ, FREE),
        Err(status(Refusal::General))
    );
    grants.end(reference).unwrap();
    // A range that leaves the page gives no more than the page.
    grants
        .grant_range(reference, DomId(1), 3, (4000, u16::MAX), Access::ReadWrite)
        .unwrap();
    assert_eq!(copy(4000, 96), 0);
    assert_eq!(copy(4000, 97), status(Refusal::BadCopyArgument));
    world.assert_unused(0);
}

#[test]
fn transitive_grants_pass_on_what_they_may() {
    let world = World::new();
    let (two, zero) = (world.version2(2), world.version2(0));
    let first = two.allocate().unwrap();
    two.grant(first, DomId(0), 5, Access::ReadOnly).unwrap();
    assert!(world.page(2, 5).write(0, b"far"));
    let to = Transitive {
        domain: DomId(2),
        reference: first,
    };
    let reference = zero.allocate().unwrap();
    zero.grant_transitive(reference, DomId(1), to, Access::ReadWrite)
        .unwrap();
    assert_eq!(world.read(1, 0, reference, 3), 0);
    assert_eq!(bytes(&world.page(1, 0), 0, 3), b"far");
    assert_eq!(
        world.write(1, 0, reference, 3),
        status(Refusal::General),
        "the first is read-only"
    );
    assert_eq!(
        world.read(2, 0, reference, 3),
        status(Refusal::General),
        "not granted to 2"
    );
    assert_eq!(
        world.map(1, reference, READ, FREE),
        Err(status(Refusal::General))
    );

    // One level only, and not to itself.
    let again = zero.allocate().unwrap();
    let own = Transitive {
        domain: DomId(0),
        reference,
    };
    zero.grant_transitive(again, DomId(1), own, Access::ReadOnly)
        .unwrap();
    assert_eq!(world.read(1, 0, again, 3), status(Refusal::General));
    let third = world.version2(1);
    let far = third.allocate().unwrap();
    zero.end(reference).unwrap();
    zero.grant_transitive(reference, DomId(1), to, Access::ReadOnly)
        .unwrap();
    third
        .grant_transitive(far, DomId(2), own, Access::ReadOnly)
        .unwrap();
    assert_eq!(world.read(2, 1, far, 3), status(Refusal::General));
    two.end(first).unwrap();
    assert_eq!(world.read(1, 0, reference, 3), status(Refusal::General));
    (0..3).for_each(|id| world.assert_unused(id));
    zero.end(reference).unwrap();
}

#[test]
fn version_1_has_neither() {
    let world = World::new();
    let grants = world.grants(0);
    let reference = grants.allocate().unwrap();
    let to = Transitive {
        domain: DomId(2),
        reference: GrantRef(9),
    };
    assert_eq!(
        grants.grant_range(reference, DomId(1), 3, (0, 1), Access::ReadOnly),
        Err(GrantError::Version)
    );
    assert_eq!(
        grants.grant_transitive(reference, DomId(1), to, Access::ReadOnly),
        Err(GrantError::Version)
    );
    set_header(&grants, reference, EntryFlags::TRANSITIVE, 1);
    assert_eq!(world.read(1, 0, reference, 1), status(Refusal::General));
    let big = u64::from(u32::MAX) + 1;
    set_header(&grants, reference, EntryFlags::empty(), 0);
    assert_eq!(
        grants.grant(reference, DomId(1), big, Access::ReadOnly),
        Err(GrantError::Frame(big))
    );
}

/// Batches of copies in both directions lock frames of both domains, and entries, while frames come and go and others map: nobody waits
/// for ever.
#[test]
fn copies_in_both_directions_wait_for_nobody() {
    let world = World::new();
    let grants = [world.grants(0), world.grants(1)];
    let references = [(0usize, 1u16), (1, 0)].map(|(own, user)| {
        (0..OWN / 2)
            .map(|frame| {
                let reference = grants[own].allocate().unwrap();
                let access = Access::ReadWrite;
                grants[own]
                    .grant(reference, DomId(user), frame, access)
                    .unwrap();
                reference
            })
            .collect::<Vec<_>>()
    });
    let (world, references) = (&world, &references);
    thread::scope(|scope| {
        for (user, from) in [(1u16, 0u16), (0, 1)] {
            let of = &references[usize::from(from)];
            scope.spawn(move || {
                let one = |reference: &GrantRef| Copy {
                    source: side(from, reference.0, 0),
                    dest: own(1, 0),
                    length: 64,
                    flags: CopyFlags::SOURCE_REF.bits(),
                    ..Copy::default()
                };
                let mut batch: Vec<_> = of.iter().map(one).collect();
                for _ in 0..300 {
                    world.caller(user).copy(&mut batch);
                    assert!(batch.iter().all(|op| op.status == 0));
                }
            });
            // A frame that is not granted leaves the domain and comes back, for which all others must be let go of.
            scope.spawn(move || {
                let pages = &world.pages[usize::from(from)];
                for _ in 0..300 {
                    let page = pages.take(OWN - 1).unwrap();
                    assert!(pages.give(page, &mut || Some(OWN - 1)));
                }
            });
            scope.spawn(move || {
                let address = FREE + 4096 * u64::from(user);
                for reference in of.iter().cycle().take(300) {
                    let mut map = [MapGrantRef {
                        host_address: address,
                        flags: WRITE,
                        reference: *reference,
                        domain: DomId(from),
                        ..MapGrantRef::default()
                    }];
                    world.caller(user).map(&mut map);
                    assert_eq!(map[0].status, 0);
                    assert_eq!(world.unmap(user, map[0].handle, address, 0), 0);
                }
            });
        }
    });
    world.assert_unused(0);
    world.assert_unused(1);
}

/// Memory that tells whose frames were lent.
struct Lender {
    id: u16,
    pages: Pages,
    lent: Arc<Mutex<Vec<u16>>>,
}

impl Memory for Lender {
    fn frame(&self, number: u64) -> Option<(Frame, Access)> {
        self.pages.frame(number)
    }

    fn frames(&self) -> Box<dyn Frames + '_> {
        self.lent.lock().unwrap().push(self.id);
        self.pages.frames()
    }

    fn map(&self, address: u64, frame: Frame, access: Access) -> Result<(), Refusal> {
        self.pages.map(address, frame, access)
    }

    fn unmap(&self, address: u64, frame: u64, replacement: u64) -> Result<(), Refusal> {
        self.pages.unmap(address, frame, replacement)
    }

    fn take(&self, number: u64) -> Result<Frame, Refusal> {
        self.pages.take(number)
    }

    fn give(&self, frame: Frame, place: &mut dyn FnMut() -> Option<u64>) -> bool {
        self.pages.give(frame, place)
    }
}

/// What keeps the above from waiting: frames are lent in the order of the domains, whichever copies, and once for a batch.
#[test]
fn frames_are_lent_in_the_order_of_domains() {
    let lent = Arc::new(Mutex::new(Vec::new()));
    let hypervisor = Hypervisor::new();
    for id in [0, 1] {
        let memory = Lender {
            id,
            pages: Pages::new(4, 4, 4),
            lent: Arc::clone(&lent),
        };
        hypervisor
            .create(DomId(id), DomainConfig::default(), memory)
            .unwrap();
    }
    let caller = |id| hypervisor.caller(DomId(id), 0).unwrap();
    for (from, user) in [(0, 1), (1, 0)] {
        let grants = Grants::new(caller(from).setup_table(DomId::SELF, 1).unwrap());
        let reference = grants.allocate().unwrap();
        grants
            .grant(reference, DomId(user), 2, Access::ReadWrite)
            .unwrap();
        let (grant, own) = (side(from, reference.0, 0), own(1, 0));
        for (source, dest, flags) in [
            (grant, own, CopyFlags::SOURCE_REF),
            (own, grant, CopyFlags::DEST_REF),
        ] {
            let mut batch = [Copy {
                source,
                dest,
                length: 8,
                flags: flags.bits(),
                ..Copy::default()
            }; 3];
            caller(user).copy(&mut batch);
            assert_eq!(batch.map(|op| op.status), [0; 3]);
            assert_eq!(std::mem::take(&mut *lent.lock().unwrap()), [0, 1]);
        }
    }
}
