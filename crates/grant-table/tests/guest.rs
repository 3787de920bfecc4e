//! The guest's own side: references, and frames that are given to it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

mod support;

use std::collections::HashSet;
use std::sync::Mutex;
use std::thread;

use grant_table::guest::{Access, GrantError};
use grant_table::spec::DomId;
use grant_table::spec::grant::{EntryFlags, GrantRef, Refusal, Transfer};
use support::*;

#[test]
fn references_are_handed_out_once() {
    let world = World::new();
    let grants = world.grants(0);
    let all: HashSet<_> = std::iter::from_fn(|| grants.allocate()).collect();
    assert_eq!(all.len(), 504);
    assert!(
        !all.contains(&GrantRef(7)) && all.contains(&GrantRef(8)) && all.contains(&GrantRef(511))
    );
    grants.release(GrantRef(100)).unwrap();
    assert_eq!(
        grants.release(GrantRef(100)),
        Err(GrantError::Reference(GrantRef(100)))
    );
    assert_eq!(
        grants.release(GrantRef(512)),
        Err(GrantError::Reference(GrantRef(512)))
    );
    grants
        .grant(GrantRef(101), DomId(1), 0, Access::ReadOnly)
        .unwrap();
    assert_eq!(
        grants.release(GrantRef(101)),
        Err(GrantError::InUse(GrantRef(101)))
    );
    assert_eq!(grants.allocate(), Some(GrantRef(100)));
    assert_eq!(grants.allocate(), None);
}

#[test]
fn threads_never_share_a_reference() {
    let world = World::new();
    let grants = world.grants(0);
    let taken = Mutex::new(HashSet::new());
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for round in 0..2000 {
                    let held: Vec<_> = (0..round % 5 + 1)
                        .filter_map(|_| grants.allocate())
                        .collect();
                    for reference in &held {
                        assert!(taken.lock().unwrap().insert(*reference));
                    }
                    for reference in held {
                        grants
                            .grant(reference, DomId(1), 3, Access::ReadOnly)
                            .unwrap();
                        grants.end(reference).unwrap();
                        assert!(taken.lock().unwrap().remove(&reference));
                        grants.release(reference).unwrap();
                    }
                }
            });
        }
    });
    assert_eq!(std::iter::from_fn(|| grants.allocate()).count(), 504);
}

#[test]
fn an_entry_in_use_is_left_alone() {
    for version in [1, 2] {
        let world = World::new();
        world.caller(0).set_version(version).unwrap();
        let grants = world.grants(0);
        let reference = grant(&grants, 3, Access::ReadWrite);
        let handle = world.map(1, reference, READ, FREE).unwrap();
        assert_eq!(grants.is_used(reference), Ok(true));
        assert_eq!(grants.end(reference), Err(GrantError::InUse(reference)));
        assert_eq!(grants.release(reference), Err(GrantError::InUse(reference)));
        assert_eq!(
            grants.grant(reference, DomId(2), 4, Access::ReadOnly),
            Err(GrantError::InUse(reference))
        );
        assert_eq!(world.unmap(1, handle, FREE, 0), 0);
        grants.end(reference).unwrap();
        assert_eq!(
            world.map(1, reference, READ, FREE),
            Err(status(Refusal::General))
        );
        grants.release(reference).unwrap();
    }
}

fn give(world: &World, frame: u64, reference: GrantRef) -> i16 {
    let mut op = [Transfer {
        frame,
        domain: DomId(0),
        reference,
        ..Transfer::default()
    }];
    world.caller(1).transfer(&mut op);
    op[0].status
}

#[test]
fn a_frame_changes_hands() {
    for version in [1, 2] {
        let world = World::new();
        world.caller(0).set_version(version).unwrap();
        let grants = world.grants(0);
        let reference = grants.allocate().unwrap();
        grants.accept_transfer(reference, DomId(1), 20).unwrap();
        assert!(world.page(1, 4).write(0, b"mine"));
        assert_eq!(give(&world, 4, reference), 0);
        assert!(world.pages[1].reach(4).is_none());
        assert_eq!(bytes(&world.page(0, 20), 0, 4), b"mine");
        assert_eq!(grants.end_transfer(reference), Ok(Some(20)));
        grants.release(reference).unwrap();
    }
}

#[test]
fn refusals_of_transfers() {
    let world = World::new();
    let grants = world.grants(0);
    let reference = grants.allocate().unwrap();
    // Nothing there, mapped by the giver, or in use by someone: the frame stays.
    assert_eq!(give(&world, OWN, reference), status(Refusal::BadPage));
    let held = world.page(1, 4);
    assert_eq!(give(&world, 4, reference), status(Refusal::BadPage));
    drop(held);
    // Nobody wants it: it is lost.
    assert_eq!(give(&world, 4, reference), status(Refusal::General));
    assert!(world.pages[1].reach(4).is_none());
    // An offer that was withdrawn.
    grants.accept_transfer(reference, DomId(1), 20).unwrap();
    assert_eq!(grants.end_transfer(reference), Ok(None));
    assert_eq!(give(&world, 5, reference), status(Refusal::General));
    // An offer to someone else, and one with other flags.
    grants.accept_transfer(reference, DomId(2), 20).unwrap();
    assert_eq!(give(&world, 6, reference), status(Refusal::General));
    set_header(
        &grants,
        reference,
        EntryFlags::ACCEPT_TRANSFER | EntryFlags::PCD,
        1,
    );
    assert_eq!(give(&world, 7, reference), status(Refusal::General));
    // Once only, and no more than fit.
    set_header(&grants, reference, EntryFlags::empty(), 0);
    grants.accept_transfer(reference, DomId(1), 20).unwrap();
    assert_eq!(give(&world, 8, reference), 0);
    assert_eq!(give(&world, 9, reference), status(Refusal::General));
    for (frame, expected) in [(21, 0), (22, status(Refusal::General))] {
        let reference = grants.allocate().unwrap();
        grants.accept_transfer(reference, DomId(1), frame).unwrap();
        assert_eq!(give(&world, 10 + frame - 21, reference), expected);
    }
    // A frame under way.
    let reference = grants.allocate().unwrap();
    set_header(
        &grants,
        reference,
        EntryFlags::ACCEPT_TRANSFER | EntryFlags::TRANSFER_COMMITTED,
        1,
    );
    assert_eq!(
        grants.end_transfer(reference),
        Err(GrantError::TransferUnderWay(reference))
    );
}
