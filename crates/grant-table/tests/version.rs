//! Changing a table's version, growing it, swapping entries, asking about it.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

mod support;

use std::sync::atomic::Ordering;

use grant_table::guest::Access;
use grant_table::hypervisor::DomainConfig;
use grant_table::spec::grant::{CacheFlags, CacheFlush, EntryFlags, GrantRef, QuerySize, Refusal};
use grant_table::spec::{DomId, Errno};
use grant_table::table::{Transitive, Version};
use support::*;

#[test]
fn reserved_entries_stay_and_the_others_go() {
    let world = World::new();
    let grants = world.grants(0);
    let console = GrantRef(0);
    assert!(grants.table().set_frame(console, 3));
    set_header(&grants, console, EntryFlags::PERMIT_ACCESS, 1);
    let other = grant(&grants, 4, Access::ReadWrite);
    let handle = world.map(1, console, READ, FREE).unwrap();
    world.caller(0).set_version(2).unwrap();
    let grants = world.grants(0);
    assert_eq!(header(&grants, console).flags, EntryFlags::PERMIT_ACCESS);
    assert_eq!(
        grants
            .table()
            .status(console)
            .unwrap()
            .load(Ordering::SeqCst),
        EntryFlags::READING.bits()
    );
    assert!(header(&grants, other).flags.is_empty());
    assert_eq!(world.caller(0).version(DomId::SELF), Ok(Version::V2));
    drop(grants);
    world.caller(0).set_version(1).unwrap();
    let grants = world.grants(0);
    assert_eq!(
        header(&grants, console).flags,
        EntryFlags::PERMIT_ACCESS | EntryFlags::READING
    );
    assert_eq!(world.unmap(1, handle, FREE, 0), 0);
    assert_eq!(header(&grants, console).flags, EntryFlags::PERMIT_ACCESS);
    assert_eq!(world.read(1, 0, console, 1), 0);
}

#[test]
fn refusals_of_versions() {
    let world = World::new();
    let caller = world.caller(0);
    assert_eq!(caller.set_version(0), Err(Errno::Inval));
    assert_eq!(caller.set_version(3), Err(Errno::Inval));
    caller.set_version(1).unwrap();
    let old = World::with(DomainConfig {
        max_version: Version::V1,
        ..DomainConfig::default()
    });
    assert_eq!(old.caller(0).set_version(2), Err(Errno::NoSys));

    let grants = world.grants(0);
    let handle = world
        .map(1, grant(&grants, 3, Access::ReadOnly), READ, FREE)
        .unwrap();
    assert_eq!(caller.set_version(2), Err(Errno::Busy));
    assert_eq!(world.unmap(1, handle, FREE, 0), 0);
    caller.set_version(2).unwrap();

    let grants = world.grants(0);
    assert_eq!(
        caller.set_version(1),
        Err(Errno::Busy),
        "the guest maps the statuses"
    );
    assert!(
        grants
            .table()
            .set_frame(GrantRef(1), u64::from(u32::MAX) + 1)
    );
    set_header(&grants, GrantRef(1), EntryFlags::PERMIT_ACCESS, 1);
    drop(grants);
    assert_eq!(caller.set_version(1), Err(Errno::Range));
    let grants = world.grants(0);
    let to = Transitive {
        domain: DomId(2),
        reference: GrantRef(9),
    };
    assert!(grants.table().set_transitive(GrantRef(1), to));
    set_header(&grants, GrantRef(1), EntryFlags::TRANSITIVE, 1);
    drop(grants);
    assert_eq!(caller.set_version(1), Err(Errno::Range));
    assert_eq!(caller.version(DomId(1)), Ok(Version::V1));
    assert_eq!(caller.version(DomId(9)), Err(Errno::Srch));
    assert_eq!(world.caller(1).version(DomId(0)), Err(Errno::Perm));
}

#[test]
fn tables_grow_to_their_limit() {
    let world = World::new();
    let caller = world.caller(0);
    let first = caller.setup_table(DomId::SELF, 1).unwrap();
    let all = caller.setup_table(DomId::SELF, 64).unwrap();
    assert_eq!(all.entries(), 64 * 512);
    assert!(all.frames()[0].is(&first.frames()[0]));
    assert_eq!(
        caller.setup_table(DomId::SELF, 65).unwrap_err(),
        Refusal::General
    );
    assert_eq!(
        caller.setup_table(DomId::SELF, u32::MAX).unwrap_err(),
        Refusal::General
    );
    assert_eq!(
        world.caller(1).setup_table(DomId(0), 1).unwrap_err(),
        Refusal::PermissionDenied
    );
    caller.setup_table(DomId(1), 1).unwrap();

    let mut query = QuerySize {
        domain: DomId(0),
        ..QuerySize::default()
    };
    caller.query_size(&mut query);
    assert_eq!((query.status, query.frames, query.max_frames), (0, 64, 64));
    query.domain = DomId(9);
    caller.query_size(&mut query);
    assert_eq!(query.status, status(Refusal::BadDomain));
}

#[test]
fn entries_swap() {
    for version in [1, 2] {
        let world = World::new();
        world.caller(0).set_version(version).unwrap();
        let grants = world.grants(0);
        let (a, b) = (
            grant(&grants, 3, Access::ReadOnly),
            grant(&grants, 4, Access::ReadWrite),
        );
        let caller = world.caller(0);
        caller.swap_grant_refs(a, b).unwrap();
        assert_eq!(
            (grants.table().frame(a), grants.table().frame(b)),
            (Some(4), Some(3))
        );
        assert!(header(&grants, b).flags.contains(EntryFlags::READONLY));
        assert_eq!(
            caller.swap_grant_refs(a, GrantRef(512)),
            Err(Refusal::BadGrantRef)
        );
        let handle = world.map(1, b, READ, FREE).unwrap();
        assert_eq!(caller.swap_grant_refs(a, b), Err(Refusal::TryAgain));
        caller.swap_grant_refs(b, b).unwrap();
        assert_eq!(world.unmap(1, handle, FREE, 0), 0);
        caller.swap_grant_refs(b, a).unwrap();
        assert_eq!(grants.table().frame(a), Some(3));
    }
}

#[test]
fn caches_are_flushed_of_what_is_mapped() {
    let world = World::new();
    let reference = grant(&world.grants(0), 3, Access::ReadOnly);
    let caller = world.caller(1);
    let flush = CacheFlush {
        device_address: world.page(0, 3).address(),
        offset: 4095,
        length: 1,
        operation: CacheFlags::CLEAN.bits(),
    };
    assert_eq!(caller.cache_flush(&flush), Err(Errno::Perm));
    world.map(1, reference, READ, FREE).unwrap();
    assert_eq!(caller.cache_flush(&flush), Ok(()));
    assert_eq!(
        caller.cache_flush(&CacheFlush { length: 2, ..flush }),
        Err(Errno::Inval)
    );
    assert_eq!(
        caller.cache_flush(&CacheFlush {
            offset: 4096,
            length: 0,
            ..flush
        }),
        Err(Errno::Inval)
    );
    assert_eq!(
        caller.cache_flush(&CacheFlush {
            operation: 4,
            ..flush
        }),
        Err(Errno::Inval)
    );
    let by_ref = CacheFlags::SOURCE_REF | CacheFlags::CLEAN;
    assert_eq!(
        caller.cache_flush(&CacheFlush {
            operation: by_ref.bits(),
            ..flush
        }),
        Err(Errno::OpNotSupp)
    );
    assert_eq!(
        caller.cache_flush(&CacheFlush {
            length: 0,
            device_address: 0,
            ..flush
        }),
        Ok(())
    );
}
