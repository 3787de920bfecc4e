//! One test for each class of grant table bug that Xen's advisories tell of, named after them. Sources: xenbits.xen.org/xsa, and the
//! messages of the commits that fixed them.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use grant_table::guest::{Access, GrantError};
use grant_table::hypervisor::{Destruction, Pin};
use grant_table::spec::grant::{
    Copy, CopyFlags, EntryFlags, GrantRef, MapGrantRef, Refusal, Transfer, UnmapGrantRef,
};
use grant_table::spec::{DomId, Errno};
use grant_table::table::Transitive;
use support::*;

/// XSA-18 and XSA-382: more frames of statuses are asked for than there are.
#[test]
fn xsa_18_382_status_frames_beyond_the_table() {
    let world = World::new();
    let caller = world.caller(0);
    assert_eq!(
        caller.status_frames(DomId::SELF, 1).unwrap_err(),
        Refusal::General
    );
    caller.set_version(2).unwrap();
    assert_eq!(caller.status_frames(DomId::SELF, 1).unwrap().len(), 1);
    assert_eq!(
        caller.status_frames(DomId::SELF, 2).unwrap_err(),
        Refusal::General
    );
    assert_eq!(
        caller.status_frames(DomId::SELF, u32::MAX).unwrap_err(),
        Refusal::General
    );
    caller.setup_table(DomId::SELF, 64).unwrap();
    assert_eq!(caller.status_frames(DomId::SELF, 8).unwrap().len(), 8);
    // The last entry has a status.
    let grants = world.grants(0);
    let last = GrantRef(grants.table().entries() - 1);
    grants.grant(last, DomId(1), 3, Access::ReadOnly).unwrap();
    assert_eq!(world.read(1, 0, last, 1), 0);
}

/// XSA-227: an address that is not a page's, or a page table entry's.
#[test]
fn xsa_227_unaligned_addresses() {
    let world = World::new();
    let reference = grant(&world.grants(0), 3, Access::ReadWrite);
    for address in [FREE + 1, FREE + 8, FREE + 4095] {
        assert_eq!(
            world.map(1, reference, WRITE, address),
            Err(status(Refusal::General))
        );
    }
    world.assert_unused(0);
}

/// XSA-134, XSA-232 and XSA-268: operations on tables that nobody has set up, in either version.
#[test]
fn xsa_134_232_268_tables_that_were_never_set_up() {
    let world = World::new();
    for version in [1, 2] {
        world.caller(0).set_version(version).unwrap();
        assert_eq!(
            world.caller(0).swap_grant_refs(GrantRef(8), GrantRef(9)),
            Ok(())
        );
        assert_eq!(
            world.map(1, GrantRef(8), READ, FREE),
            Err(status(Refusal::General))
        );
        assert_eq!(world.read(1, 0, GrantRef(8), 1), status(Refusal::General));
        assert_eq!(world.unmap(1, 0, FREE, 0), status(Refusal::BadHandle));
        let mut op = [Transfer {
            frame: version.into(),
            domain: DomId(0),
            reference: GrantRef(8),
            ..Transfer::default()
        }];
        world.caller(2).transfer(&mut op);
        assert_eq!(op[0].status, status(Refusal::General));
    }
}

/// XSA-26, XSA-255, XSA-379 and XSA-384: the version changes while entries or frames of statuses are in use.
#[test]
fn xsa_26_255_379_384_version_switch_while_mapped() {
    let world = World::new();
    let grants = world.version2(0);
    let reference = grant(&grants, 3, Access::ReadWrite);
    let handle = world.map(1, reference, WRITE, FREE).unwrap();
    drop(grants);
    assert_eq!(world.caller(0).set_version(1), Err(Errno::Busy));
    assert_eq!(world.unmap(1, handle, FREE, 0), 0);
    let held = world.caller(0).status_frames(DomId::SELF, 1).unwrap();
    assert_eq!(world.caller(0).set_version(1), Err(Errno::Busy));
    drop(held);
    world.caller(0).set_version(1).unwrap();
}

/// XSA-486 and XSA-501: the version changes to and fro while others use entries.
#[test]
fn xsa_486_501_version_switch_races_with_use() {
    let world = World::new();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..300 {
                let _busy = world.caller(0).set_version(round % 2 + 1);
                let grants = world.grants(0);
                for reference in (8..12).map(GrantRef) {
                    let _used = grants.grant(reference, DomId(1), 3, Access::ReadWrite);
                }
            }
            stop.store(true, Ordering::Release);
        });
        for address in [FREE, FREE + 4096] {
            let (world, stop) = (&world, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Acquire) {
                    for reference in (8..12).map(GrantRef) {
                        let _answer = world.write(1, 0, reference, 64);
                        if let Ok(handle) = world.map(1, reference, WRITE, address) {
                            assert_eq!(world.unmap(1, handle, address, 0), 0);
                        }
                    }
                }
            });
        }
    });
    world.assert_unused(0);
    for reference in (8..12).map(GrantRef) {
        assert!(
            !header(&world.grants(0), reference)
                .flags
                .intersects(EntryFlags::IN_USE)
        );
    }
}

/// XSA-224: mappings for host and device, read-only and writable, ended in any order leave the counts right.
#[test]
fn xsa_224_mixed_mappings_end_in_any_order() {
    let kinds = [
        READ,
        WRITE,
        READ | DEVICE,
        WRITE | DEVICE,
        READ & !WRITE | DEVICE,
    ];
    for order in 0..120 {
        let world = World::new();
        let grants = world.grants(0);
        let reference = grant(&grants, 3, Access::ReadWrite);
        let device = world.page(0, 3).address();
        let map = |(i, flags): (u64, u32)| {
            (
                world.map(1, reference, flags, FREE + 4096 * i).unwrap(),
                FREE + 4096 * i,
                flags,
            )
        };
        let mut left: Vec<_> = (0..).zip(kinds).map(map).collect();
        let mut order = order;
        while !left.is_empty() {
            let (handle, address, flags) = left.remove(order % left.len());
            order /= left.len() + 1;
            assert_eq!(
                world.unmap(1, handle, if flags & WRITE != 0 { address } else { 0 }, 0),
                0
            );
            if flags & DEVICE != 0 {
                assert_eq!(world.unmap(1, handle, 0, device), 0);
            }
            let pin = world.caller(0).pin(reference).unwrap();
            let marks = header(&grants, reference).flags;
            assert_eq!(marks.contains(EntryFlags::WRITING), pin.is_written());
            assert_eq!(marks.contains(EntryFlags::READING), !pin.is_free());
        }
        world.assert_unused(0);
    }
}

/// XSA-234: a mapping cannot be taken away from where another one is.
#[test]
fn xsa_234_unmap_names_another_mapping() {
    let world = World::new();
    let grants = world.grants(0);
    let (a, b) = (
        grant(&grants, 3, Access::ReadOnly),
        grant(&grants, 4, Access::ReadWrite),
    );
    let first = world.map(1, a, READ, FREE).unwrap();
    let second = world.map(1, b, WRITE, FREE + 4096).unwrap();
    assert_eq!(
        world.unmap(1, first, FREE + 4096, 0),
        status(Refusal::General)
    );
    assert!(world.pages[1].reach(OWN + 1).is_some());
    // The same frame, but another mapping of it.
    let third = world.map(1, b, READ, FREE + 8192).unwrap();
    assert_eq!(
        world.unmap(1, third, FREE + 4096, 0),
        status(Refusal::General)
    );
    for (handle, address) in [(first, FREE), (second, FREE + 4096), (third, FREE + 8192)] {
        assert_eq!(world.unmap(1, handle, address, 0), 0);
    }
    world.assert_unused(0);
}

/// XSA-230 and XSA-236: a mapping that fails half-way leaves no count, mark or handle behind.
#[test]
fn xsa_230_236_failed_mappings_leave_nothing() {
    let world = World::new();
    let grants = world.grants(0);
    let reference = grant(&grants, 3, Access::ReadWrite);
    for _ in 0..300 {
        assert_eq!(
            world.map(1, reference, WRITE | DEVICE, 0),
            Err(status(Refusal::General)),
            "occupied"
        );
    }
    world.assert_unused(0);
    assert!(
        !header(&grants, reference)
            .flags
            .intersects(EntryFlags::IN_USE)
    );
    let reader = world.map(1, reference, READ, FREE).unwrap();
    assert_eq!(
        world.map(1, reference, WRITE, FREE),
        Err(status(Refusal::General))
    );
    assert!(
        !header(&grants, reference)
            .flags
            .contains(EntryFlags::WRITING)
    );
    assert_eq!(reader, 0, "the first handle");
}

/// XSA-284: a failing transfer frees the frame once; XSA-394: a count falls only when a half of the mapping has really gone.
#[test]
fn xsa_284_394_counts_fall_once() {
    let world = World::new();
    let grants = world.grants(0);
    let reference = grant(&grants, 3, Access::ReadWrite);
    let handle = world.map(1, reference, WRITE, FREE).unwrap();
    for _ in 0..3 {
        assert_eq!(world.unmap(1, handle, 0, 0), 0);
        assert_eq!(world.unmap(1, handle, 4096, 0), status(Refusal::General));
    }
    assert_eq!(
        world.caller(0).pin(reference),
        Some(Pin {
            host_write: 1,
            ..Pin::default()
        })
    );
    let mut op = [UnmapGrantRef {
        host_address: FREE,
        handle,
        ..UnmapGrantRef::default()
    }; 3];
    world.caller(1).unmap(&mut op);
    assert_eq!(
        op.map(|op| op.status),
        [0, status(Refusal::BadHandle), status(Refusal::BadHandle)]
    );
    world.assert_unused(0);

    let mut op = [Transfer {
        frame: 4,
        domain: DomId(0),
        reference,
        ..Transfer::default()
    }];
    for refusal in [Refusal::General, Refusal::BadPage] {
        world.caller(1).transfer(&mut op);
        assert_eq!(op[0].status, status(refusal));
    }
}

/// XSA-380: ending a domain with many mappings is done in steps.
#[test]
fn xsa_380_teardown_in_steps() {
    let world = World::new();
    let grants = world.grants(0);
    let references: Vec<_> = (0..5)
        .map(|_| grant(&grants, 3, Access::ReadOnly))
        .collect();
    for i in 0..500u64 {
        world
            .map(1, references[i as usize % 5], READ, FREE + 4096 * i)
            .unwrap();
    }
    let mut steps = 0;
    while world.hypervisor.destroy(DomId(1), 100).unwrap() == Destruction::Unfinished {
        steps += 1;
    }
    assert_eq!(steps, 5);
    world.assert_unused(0);
}

/// XSA-218: two threads unmap one mapping: one of them does.
#[test]
fn xsa_218_one_mapping_unmapped_twice_at_once() {
    let world = World::new();
    let grants = world.grants(0);
    let reference = grant(&grants, 3, Access::ReadWrite);
    let keep = world.map(1, reference, WRITE, FREE + 4096).unwrap();
    for _ in 0..300 {
        let handle = world.map(1, reference, WRITE, FREE).unwrap();
        let ended: i32 = thread::scope(|scope| {
            let threads =
                [(); 2].map(|()| scope.spawn(|| i32::from(world.unmap(1, handle, FREE, 0) == 0)));
            threads
                .map(|thread| thread.join().unwrap())
                .into_iter()
                .sum()
        });
        assert_eq!(ended, 1);
        assert_eq!(
            world.caller(0).pin(reference),
            Some(Pin {
                host_write: 1,
                ..Pin::default()
            })
        );
    }
    assert_eq!(world.unmap(1, keep, FREE + 4096, 0), 0);
}

/// XSA-228: handles are taken and given back on several virtual CPUs at once, and none is handed out twice.
#[test]
fn xsa_228_handles_are_free_or_used() {
    let world = World::new();
    let grants = world.grants(0);
    let references: Vec<_> = (0..16)
        .map(|_| grant(&grants, 3, Access::ReadOnly))
        .collect();
    thread::scope(|scope| {
        for vcpu in 0..2usize {
            let (world, references) = (&world, &references);
            scope.spawn(move || {
                let caller = world.hypervisor.caller(DomId(1), vcpu).unwrap();
                for round in 0..500 {
                    let mut map: Vec<_> = (0..round % 40u64 + 1)
                        .map(|i| MapGrantRef {
                            host_address: FREE + 4096 * (vcpu as u64 * 64 + i),
                            flags: READ,
                            reference: references[i as usize % 16],
                            ..MapGrantRef::default()
                        })
                        .collect();
                    caller.map(&mut map);
                    assert!(map.iter().all(|op| op.status == 0), "{map:?}");
                    let mut unmap: Vec<_> = map
                        .iter()
                        .map(|op| UnmapGrantRef {
                            handle: op.handle,
                            host_address: op.host_address,
                            ..UnmapGrantRef::default()
                        })
                        .collect();
                    caller.unmap(&mut unmap);
                    assert!(unmap.iter().all(|op| op.status == 0), "{unmap:?}");
                }
            });
        }
    });
    world.assert_unused(0);
}

/// XSA-295: a guest that never stops rewriting its entry keeps nobody busy, and never gets more than it granted.
#[test]
fn xsa_295_entry_that_never_stops_changing() {
    for version in [1, 2] {
        let world = World::new();
        world.caller(0).set_version(version).unwrap();
        let grants = world.grants(0);
        let reference = grant(&grants, 3, Access::ReadWrite);
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let word = grants.table().header(reference).unwrap();
                let mut count = 0u32;
                while !stop.load(Ordering::Relaxed) {
                    count = count.wrapping_add(1);
                    let flip = [EntryFlags::PCD, EntryFlags::READONLY][count as usize % 2];
                    word.fetch_xor(flip.bits().into(), Ordering::Relaxed);
                }
            });
            for _ in 0..3000 {
                if let Ok(handle) = world.map(1, reference, WRITE, FREE) {
                    assert_eq!(world.unmap(1, handle, FREE, 0), 0);
                }
                let _answer = world.write(1, 0, reference, 8);
            }
            stop.store(true, Ordering::Relaxed);
        });
        world.assert_unused(0);
        assert_eq!(grants.is_used(reference), Ok(false));
    }
}

/// XSA-226: transitive grants, also to each other and on threads, give back what they took; XSA-411: so do those that are refused.
#[test]
fn xsa_226_411_transitive_grants_and_locks() {
    let world = World::new();
    let (zero, two) = (world.version2(0), world.version2(2));
    let end = two.allocate().unwrap();
    two.grant(end, DomId(0), 5, Access::ReadWrite).unwrap();
    let there = zero.allocate().unwrap();
    let to = |domain, reference| Transitive {
        domain: DomId(domain),
        reference,
    };
    zero.grant_transitive(there, DomId(1), to(2, end), Access::ReadWrite)
        .unwrap();
    // Two that refer to each other.
    let (a, b) = (zero.allocate().unwrap(), two.allocate().unwrap());
    zero.grant_transitive(a, DomId(1), to(2, b), Access::ReadWrite)
        .unwrap();
    two.grant_transitive(b, DomId(1), to(0, a), Access::ReadWrite)
        .unwrap();
    thread::scope(|scope| {
        for (domain, reference) in [(0, a), (2, b)] {
            let world = &world;
            scope.spawn(move || {
                for _ in 0..500 {
                    assert_ne!(world.read(1, domain, reference, 8), 0);
                    let answer = world.write(1, 0, there, 8);
                    assert!(
                        answer == 0 || answer == status(Refusal::TryAgain),
                        "{answer}"
                    );
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..500 {
                world
                    .caller(2)
                    .swap_grant_refs(GrantRef(100), GrantRef(101))
                    .unwrap();
                world
                    .caller(0)
                    .swap_grant_refs(GrantRef(100), GrantRef(101))
                    .unwrap();
            }
        });
    });
    (0..3).for_each(|id| world.assert_unused(id));
    zero.end(there).unwrap();
    two.end(end).unwrap();
}

/// XSA-500: an entry in use is turned into a transitive one, or the other way: it stays what it was.
#[test]
fn xsa_500_entry_changes_its_kind_while_in_use() {
    let world = World::new();
    let (zero, two) = (world.version2(0), world.version2(2));
    let end = two.allocate().unwrap();
    two.grant(end, DomId(0), 5, Access::ReadWrite).unwrap();
    let reference = grant(&zero, 3, Access::ReadWrite);
    let handle = world.map(1, reference, READ, FREE).unwrap();
    let table = zero.table();
    let to = Transitive {
        domain: DomId(2),
        reference: end,
    };
    assert!(table.set_transitive(reference, to));
    set_header(&zero, reference, EntryFlags::TRANSITIVE, 1);
    assert_eq!(world.read(1, 0, reference, 8), status(Refusal::General));
    assert_eq!(world.write(1, 0, reference, 8), status(Refusal::General));
    world.assert_unused(2);
    assert_eq!(world.unmap(1, handle, FREE, 0), 0);
    world.assert_unused(0);
    assert_eq!(world.read(1, 0, reference, 8), 0);
    // To and fro on a thread.
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                set_header(&zero, reference, EntryFlags::PERMIT_ACCESS, 1);
                set_header(&zero, reference, EntryFlags::TRANSITIVE, 1);
            }
        });
        for _ in 0..2000 {
            let _answer = world.write(1, 0, reference, 8);
        }
        stop.store(true, Ordering::Relaxed);
    });
    world.assert_unused(0);
    world.assert_unused(2);
}

/// XSA-316 and XSA-318: an operation that is to be tried again is answered so, and the batch goes on behind it.
#[test]
fn xsa_316_318_answers_are_negative_and_batches_go_on() {
    let world = World::new();
    let grants = world.grants(0);
    let reference = grant(&grants, 3, Access::ReadOnly);
    let good = Copy {
        source: side(0, reference.0, 0),
        dest: own(0, 0),
        length: 8,
        flags: CopyFlags::SOURCE_REF.bits(),
        ..Copy::default()
    };
    let bad = Copy {
        source: side(0, 100, 0),
        ..good
    };
    let mut ops = [bad, good, bad, good];
    world.caller(1).copy(&mut ops);
    let general = status(Refusal::General);
    assert_eq!(ops.map(|op| op.status), [general, 0, general, 0]);
    for refusal in [Refusal::General, Refusal::TryAgain, Refusal::NoSpace] {
        assert!(status(refusal) < 0);
    }
}

/// XSA-73: two domains use each other's grants at once, with tables that change: nobody waits for ever.
#[test]
fn xsa_73_tables_are_locked_in_order() {
    let world = World::new();
    let grants = [world.grants(0), world.grants(1)];
    let mut references = [GrantRef(0); 2];
    for (domain, user) in [(0, 1), (1, 0)] {
        references[domain] = grants[domain].allocate().unwrap();
        grants[domain]
            .grant(references[domain], DomId(user), 3, Access::ReadWrite)
            .unwrap();
    }
    let refs = &references;
    thread::scope(|scope| {
        for (from, to) in [(0u16, 1u16), (1, 0)] {
            let world = &world;
            // Domain 0 may not use its own grant: refused, but both tables are locked.
            scope.spawn(move || {
                for _ in 0..1000 {
                    let flags = CopyFlags::SOURCE_REF | CopyFlags::DEST_REF;
                    let (source, dest) = (refs[usize::from(from)].0, refs[usize::from(to)].0);
                    let answer = world.copy(0, side(from, source, 0), side(to, dest, 0), 8, flags);
                    assert_eq!(answer, status(Refusal::General));
                }
            });
            scope.spawn(move || {
                for _ in 0..1000 {
                    world
                        .caller(from)
                        .swap_grant_refs(GrantRef(100), GrantRef(101))
                        .unwrap();
                }
            });
        }
    });
    world.assert_unused(0);
    world.assert_unused(1);
}

/// The follow-up to XSA-448: nothing is copied, whatever it would be.
#[test]
fn xsa_448_copy_of_nothing() {
    let world = World::new();
    for flags in [
        CopyFlags::empty(),
        CopyFlags::SOURCE_REF,
        CopyFlags::DEST_REF,
    ] {
        let (from, to) = (side(77, u32::MAX, u16::MAX), side(78, u32::MAX, u16::MAX));
        assert_eq!(world.copy(1, from, to, 0, flags), 0);
    }
}

/// XSA-361: in a batch each mapping has its own answer.
#[test]
fn xsa_361_each_mapping_of_a_batch_is_answered() {
    let world = World::new();
    let reference = grant(&world.grants(0), 3, Access::ReadOnly);
    let map = |reference, slot: u64| MapGrantRef {
        host_address: FREE + 4096 * slot,
        flags: READ,
        reference,
        status: 55,
        ..MapGrantRef::default()
    };
    let mut ops = [
        map(reference, 0),
        map(GrantRef(99), 1),
        map(reference, 0),
        map(reference, 2),
    ];
    world.caller(1).map(&mut ops);
    let general = status(Refusal::General);
    assert_eq!(ops.map(|op| op.status), [0, general, general, 0]);
}

/// CVE-2017-12855: marks go only after nobody can reach the frame; XSA-236: a frame that its owner gives up lives while it is mapped.
#[test]
fn cve_2017_12855_marks_and_frames_outlive_use() {
    let world = World::new();
    let grants = world.grants(0);
    let reference = grant(&grants, 3, Access::ReadWrite);
    let first = world.map(1, reference, WRITE, FREE).unwrap();
    let second = world.map(1, reference, WRITE, FREE + 4096).unwrap();
    assert!(world.pages[0].release(3));
    assert_eq!(world.unmap(1, first, FREE, 0), 0);
    assert_eq!(grants.end(reference), Err(GrantError::InUse(reference)));
    assert!(world.page(1, OWN + 1).write(0, b"still there"));
    assert_eq!(world.unmap(1, second, FREE + 4096, 0), 0);
    grants.end(reference).unwrap();
}

/// XSA-255: the number of a frame that is not there, in either version.
#[test]
fn frames_out_of_range() {
    for version in [1, 2] {
        let world = World::new();
        world.caller(0).set_version(version).unwrap();
        let grants = world.grants(0);
        for number in [OWN, PAGES, u32::MAX.into()]
            .into_iter()
            .chain((version == 2).then_some(u64::MAX))
        {
            let reference = grant(&grants, number, Access::ReadWrite);
            assert_eq!(
                world.map(1, reference, READ, FREE),
                Err(status(Refusal::BadPage))
            );
            assert_eq!(world.read(1, 0, reference, 1), status(Refusal::BadPage));
            grants.end(reference).unwrap();
        }
    }
}
