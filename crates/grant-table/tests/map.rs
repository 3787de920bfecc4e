//! Mapping and unmapping: statuses, counts and what the guest is told.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

mod support;

use grant_table::guest::{Access, GrantError};
use grant_table::hypervisor::{Destruction, DomainConfig, Pin};
use grant_table::spec::DomId;
use grant_table::spec::grant::{
    CopyFlags, EntryFlags, GrantRef, MapFlags, MapGrantRef, Refusal, Transfer, UnmapAndReplace,
    UnmapGrantRef,
};
use support::*;

#[test]
fn a_mapping_is_the_same_memory() {
    let world = World::new();
    let grants = world.grants(0);
    let reference = grant(&grants, 3, Access::ReadWrite);
    let handle = world.map(1, reference, WRITE, FREE).unwrap();
    let (frame, access) = world.pages[1].reach(OWN).unwrap();
    assert_eq!(access, Access::ReadWrite);
    assert!(frame.write(5, b"there"));
    drop(frame);
    assert_eq!(bytes(&world.page(0, 3), 5, 5), b"there");

    assert_eq!(
        header(&grants, reference).flags,
        EntryFlags::PERMIT_ACCESS | EntryFlags::IN_USE
    );
    assert_eq!(grants.end(reference), Err(GrantError::InUse(reference)));
    assert_eq!(world.unmap(1, handle, FREE, 0), 0);
    assert_eq!(header(&grants, reference).flags, EntryFlags::PERMIT_ACCESS);
    assert!(world.pages[1].reach(OWN).is_none());
    grants.end(reference).unwrap();
    grants.release(reference).unwrap();
    world.assert_unused(0);
}

#[test]
fn refusals_of_mapping() {
    let world = World::new();
    let grants = world.grants(0);
    let read_only = grant(&grants, 3, Access::ReadOnly);
    let missing = grant(&grants, OWN + 1, Access::ReadWrite);
    let cases = [
        (read_only, READ & !WRITE, FREE, Refusal::BadGrantRef),
        (read_only, WRITE, FREE, Refusal::General),
        (missing, WRITE, FREE, Refusal::BadPage),
        (GrantRef(512), READ, FREE, Refusal::BadGrantRef),
        (GrantRef(u32::MAX), READ, FREE, Refusal::BadGrantRef),
        (GrantRef(100), READ, FREE, Refusal::General),
        (
            read_only,
            READ | MapFlags::APPLICATION.bits(),
            FREE,
            Refusal::General,
        ),
        (
            read_only,
            READ | MapFlags::CONTAINS_PTE.bits(),
            FREE,
            Refusal::General,
        ),
        (read_only, READ, FREE + 1, Refusal::General),
        (read_only, READ, 4096, Refusal::General),
        (read_only, READ, u64::MAX, Refusal::General),
    ];
    for (reference, flags, address, refusal) in cases {
        assert_eq!(
            world.map(1, reference, flags, address),
            Err(status(refusal)),
            "{flags:#x}"
        );
        world.assert_unused(0);
    }
    assert_eq!(
        world.map(2, read_only, READ, FREE),
        Err(status(Refusal::General))
    );
    assert!(
        !header(&grants, read_only)
            .flags
            .intersects(EntryFlags::IN_USE)
    );

    let mut op = [MapGrantRef {
        domain: DomId(9),
        flags: READ,
        ..MapGrantRef::default()
    }];
    world.caller(1).map(&mut op);
    assert_eq!(op[0].status, status(Refusal::BadDomain));
    op[0].flags = 0;
    world.caller(1).map(&mut op);
    assert_eq!(op[0].status, status(Refusal::BadGrantRef));
}

#[test]
fn device_mappings_are_for_those_who_may() {
    let world = World::with(DomainConfig::default());
    let reference = grant(&world.grants(0), 3, Access::ReadWrite);
    assert_eq!(
        world.map(1, reference, DEVICE, 0),
        Err(status(Refusal::General))
    );
}

#[test]
fn a_handle_lives_until_both_halves_are_unmapped() {
    let world = World::new();
    let grants = world.grants(0);
    let reference = grant(&grants, 3, Access::ReadWrite);
    let mut op = [MapGrantRef {
        host_address: FREE,
        flags: WRITE | DEVICE,
        reference,
        ..MapGrantRef::default()
    }];
    world.caller(1).map(&mut op);
    let MapGrantRef {
        handle,
        device_address,
        status: 0,
        ..
    } = op[0]
    else {
        panic!("{op:?}")
    };
    assert_eq!(device_address, world.page(0, 3).address());
    let pin = Pin {
        host_write: 1,
        device_write: 1,
        ..Pin::default()
    };
    assert_eq!(world.caller(0).pin(reference), Some(pin));

    assert_eq!(
        world.unmap(1, handle, 0, device_address + 4096),
        status(Refusal::General)
    );
    assert_eq!(
        world.unmap(1, handle, FREE + 4096, 0),
        status(Refusal::General)
    );
    assert_eq!(world.unmap(1, handle, 0, 0), 0);
    assert_eq!(world.caller(0).pin(reference), Some(pin));
    assert_eq!(world.unmap(1, handle, FREE, 0), 0);
    let pin = Pin {
        device_write: 1,
        ..Pin::default()
    };
    assert_eq!(world.caller(0).pin(reference), Some(pin));
    assert!(
        header(&grants, reference)
            .flags
            .contains(EntryFlags::WRITING)
    );
    // Again: there is nothing to do.
    assert_eq!(world.unmap(1, handle, FREE, 0), 0);
    assert_eq!(world.unmap(1, handle, 0, device_address), 0);
    world.assert_unused(0);
    assert_eq!(
        world.unmap(1, handle, 0, device_address),
        status(Refusal::BadHandle)
    );
}

#[test]
fn counts_stop_at_128() {
    let world = World::new();
    let grants = world.grants(0);
    let reference = grant(&grants, 3, Access::ReadWrite);
    let handles: Vec<_> = (0..128)
        .map(|i| world.map(1, reference, READ, FREE + 4096 * i).unwrap())
        .collect();
    assert_eq!(
        world.map(1, reference, READ, FREE + 4096 * 200),
        Err(status(Refusal::General))
    );
    assert_eq!(
        world.map(1, reference, WRITE, FREE + 4096 * 200),
        Err(status(Refusal::General))
    );
    assert_eq!(world.read(1, 0, reference, 1), status(Refusal::General));
    assert_eq!(world.unmap(1, handles[7], FREE + 4096 * 7, 0), 0);
    world.map(1, reference, WRITE, FREE + 4096 * 7).unwrap();
}

#[test]
fn writing_ends_with_the_last_writer() {
    let world = World::new();
    let grants = world.grants(0);
    let reference = grant(&grants, 3, Access::ReadWrite);
    let reader = world.map(1, reference, READ, FREE).unwrap();
    assert_eq!(
        header(&grants, reference).flags & EntryFlags::IN_USE,
        EntryFlags::READING
    );
    let writer = world.map(1, reference, WRITE, FREE + 4096).unwrap();
    assert_eq!(
        header(&grants, reference).flags & EntryFlags::IN_USE,
        EntryFlags::IN_USE
    );
    assert_eq!(
        grants.make_read_only(reference),
        Err(GrantError::InUse(reference))
    );
    assert_eq!(world.unmap(1, writer, FREE + 4096, 0), 0);
    assert_eq!(
        header(&grants, reference).flags & EntryFlags::IN_USE,
        EntryFlags::READING
    );
    grants.make_read_only(reference).unwrap();
    assert_eq!(
        world.map(1, reference, WRITE, FREE + 4096),
        Err(status(Refusal::General))
    );
    assert_eq!(world.unmap(1, reader, FREE, 0), 0);
    world.assert_unused(0);
}

#[test]
fn handles_run_out_and_come_back() {
    let config = DomainConfig {
        vcpus: 2,
        max_maptrack_frames: 1,
        ..DomainConfig::default()
    };
    let world = World::with(config);
    let grants = world.grants(0);
    let references: Vec<_> = (0..3)
        .map(|_| grant(&grants, 3, Access::ReadOnly))
        .collect();
    let mut ops: Vec<_> = (0..257u64)
        .map(|i| MapGrantRef {
            host_address: FREE + 4096 * i,
            flags: READ,
            reference: references[i as usize % 3],
            ..MapGrantRef::default()
        })
        .collect();
    world.caller(1).map(&mut ops);
    assert!(ops[..256].iter().all(|op| op.status == 0));
    assert_eq!(ops[256].status, status(Refusal::NoDeviceSpace));
    let mut unmap: Vec<_> = ops[..256]
        .iter()
        .map(|op| UnmapGrantRef {
            handle: op.handle,
            host_address: op.host_address,
            ..UnmapGrantRef::default()
        })
        .collect();
    world.caller(1).unmap(&mut unmap);
    assert!(unmap.iter().all(|op| op.status == 0));
    world.assert_unused(0);
    // The other virtual CPU has no slots of its own, and takes the first one's.
    let mut op = [ops[0]];
    world.hypervisor.caller(DomId(1), 1).unwrap().map(&mut op);
    assert_eq!(op[0].status, 0);
}

/// With three virtual CPUs a handle's bits can name a fourth's mappings.
#[test]
fn a_handle_of_no_virtual_cpu() {
    let world = World::with(DomainConfig {
        vcpus: 3,
        ..DomainConfig::default()
    });
    let reference = grant(&world.grants(0), 3, Access::ReadWrite);
    let handles = [0, 1, 2].map(|vcpu| {
        let mut op = [MapGrantRef {
            host_address: FREE + 4096 * vcpu as u64,
            flags: WRITE,
            reference,
            ..MapGrantRef::default()
        }];
        let caller = world.hypervisor.caller(DomId(1), vcpu).unwrap();
        caller.map(&mut op);
        assert_eq!(op[0].status, 0);
        op[0].handle
    });
    let mut ops: Vec<_> = (0..9)
        .chain([u32::MAX])
        .map(|handle| UnmapGrantRef {
            handle,
            host_address: FREE,
            status: 1,
            ..UnmapGrantRef::default()
        })
        .filter(|op| !handles.contains(&op.handle))
        .collect();
    world.caller(1).unmap(&mut ops);
    let bad = status(Refusal::BadHandle);
    assert!(ops.iter().all(|op| op.status == bad), "{ops:?}");
    for (handle, page) in handles.into_iter().zip(0..) {
        assert_eq!(world.unmap(1, handle, FREE + 4096 * page, 0), 0);
    }
    world.assert_unused(0);
}

#[test]
fn another_mapping_takes_the_place() {
    let world = World::new();
    let grants = world.grants(0);
    let (a, b) = (
        grant(&grants, 3, Access::ReadWrite),
        grant(&grants, 4, Access::ReadWrite),
    );
    let handle = world.map(1, a, WRITE, FREE).unwrap();
    world.map(1, b, WRITE, FREE + 4096).unwrap();
    let mut op = [UnmapAndReplace {
        host_address: FREE,
        new_address: FREE + 4096,
        handle,
        ..UnmapAndReplace::default()
    }];
    world.caller(1).unmap_and_replace(&mut op);
    assert_eq!(op[0].status, 0);
    assert!(world.page(1, OWN).is(&world.page(0, 4)));
    assert!(world.pages[1].reach(OWN + 1).is_none());
    world.caller(1).unmap_and_replace(&mut op);
    assert_eq!(op[0].status, status(Refusal::BadHandle));
}

#[test]
fn a_frame_that_is_mapped_cannot_be_granted_on() {
    let world = World::new();
    let reference = grant(&world.grants(0), 3, Access::ReadWrite);
    world.map(1, reference, WRITE, FREE).unwrap();
    let grants = world.grants(1);
    let on = grants.allocate().unwrap();
    grants.grant(on, DomId(2), OWN, Access::ReadWrite).unwrap();
    assert_eq!(world.read(2, 1, on, 1), status(Refusal::BadPage));
    assert_eq!(
        world.copy(
            1,
            own(OWN, 0),
            own(0, 0),
            1,
            grant_table::spec::grant::CopyFlags::empty()
        ),
        status(Refusal::BadPage)
    );
}

#[test]
fn a_domain_goes_when_its_entries_are_free() {
    let world = World::new();
    let grants = world.grants(0);
    let reference = grant(&grants, 3, Access::ReadWrite);
    let handle = world.map(1, reference, WRITE, FREE).unwrap();
    let destroy = |id| world.hypervisor.destroy(DomId(id), 8).unwrap();
    assert_eq!(destroy(0), Destruction::InUse(1));
    assert!(world.hypervisor.caller(DomId(0), 0).is_none());
    assert_eq!(
        world.map(1, reference, WRITE, FREE + 4096),
        Err(status(Refusal::General))
    );
    assert_eq!(world.unmap(1, handle, FREE, 0), 0);
    assert_eq!(destroy(0), Destruction::Gone);
    assert!(world.hypervisor.destroy(DomId(0), 8).is_err());
}

#[test]
fn a_domain_that_goes_lets_go_of_others() {
    let world = World::new();
    let grants = world.grants(0);
    let reference = grant(&grants, 3, Access::ReadWrite);
    let caller = world.caller(1);
    for i in 0..20 {
        world.map(1, reference, WRITE, FREE + 4096 * i).unwrap();
    }
    let mut rounds = 1;
    while world.hypervisor.destroy(DomId(1), 8).unwrap() == Destruction::Unfinished {
        rounds += 1;
    }
    assert_eq!(rounds, 3);
    world.assert_unused(0);
    grants.end(reference).unwrap();
    // Whoever still holds the domain cannot map any more.
    grants
        .grant(reference, DomId(1), 3, Access::ReadWrite)
        .unwrap();
    let mut op = [MapGrantRef {
        host_address: FREE,
        flags: WRITE,
        reference,
        ..MapGrantRef::default()
    }];
    caller.map(&mut op);
    assert_eq!(op[0].status, status(Refusal::General));
}

/// Xen looks for the granter, and for who gets a frame, among the domains that have identifiers of their own
/// (`xen/common/grant_table.c`, `rcu_lock_domain_by_id`): "self" is none there, as it is one for copies and questions.
#[test]
fn self_is_no_granter_and_gets_no_frames() {
    let world = World::new();
    let grants = world.grants(0);
    let reference = grants.allocate().unwrap();
    grants
        .grant(reference, DomId(0), 3, Access::ReadWrite)
        .unwrap();
    let caller = world.caller(0);
    let map = |domain| {
        let mut op = [MapGrantRef {
            host_address: FREE,
            flags: WRITE,
            reference,
            domain,
            ..MapGrantRef::default()
        }];
        caller.map(&mut op);
        op[0].status
    };
    assert_eq!(map(DomId::SELF), status(Refusal::BadDomain));
    // By its number it may map its own grant.
    assert_eq!(map(DomId(0)), 0);
    let own = own(1, 0);
    let read = world.copy(
        0,
        side(DomId::SELF.0, reference.0, 0),
        own,
        8,
        CopyFlags::SOURCE_REF,
    );
    assert_eq!(read, 0);

    let offer = grants.allocate().unwrap();
    grants.accept_transfer(offer, DomId(0), OWN + 1).unwrap();
    let transfer = |frame, domain| {
        let mut op = [Transfer {
            frame,
            domain,
            reference: offer,
            ..Transfer::default()
        }];
        caller.transfer(&mut op);
        op[0].status
    };
    assert_eq!(transfer(4, DomId::SELF), status(Refusal::BadDomain));
    assert_eq!(
        transfer(4, DomId(0)),
        status(Refusal::BadPage),
        "it is gone"
    );
    assert_eq!(transfer(5, DomId(0)), 0);
    assert_eq!(grants.end_transfer(offer), Ok(Some(OWN + 1)));
}
