//! The hypercall as guests make it: arguments in memory, batches, pauses, faults.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "test code"
)]

mod support;

use std::cell::{Cell, RefCell};

use grant_table::guest::Access;
use grant_table::hypervisor::{Arguments, Fault, Outcome};
use grant_table::spec::grant::{
    Copy, CopyFlags, GetStatusFrames, GetVersion, MapGrantRef, QuerySize, Refusal, SetVersion,
    SetupTable, SwapGrantRef, UnmapGrantRef, op,
};
use grant_table::spec::{DomId, Errno};
use proptest::prelude::*;
use support::*;
use zerocopy::{FromBytes, IntoBytes};

struct Memory {
    bytes: RefCell<Vec<u8>>,
    preempt: bool,
    reads: Cell<usize>,
}

impl Memory {
    fn new(size: usize) -> Self {
        Self {
            bytes: RefCell::new(vec![0; size]),
            preempt: false,
            reads: Cell::new(0),
        }
    }

    fn put<T: IntoBytes + zerocopy::Immutable>(&self, at: usize, values: &[T]) {
        let bytes = values.as_bytes();
        self.bytes.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn get<T: FromBytes>(&self, at: usize) -> T {
        T::read_from_bytes(&self.bytes.borrow()[at..at + size_of::<T>()]).unwrap()
    }
}

impl Arguments for Memory {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Fault> {
        self.reads.set(self.reads.get() + 1);
        let bytes = self.bytes.borrow();
        let start = usize::try_from(address).unwrap();
        let from = start
            .checked_add(into.len())
            .and_then(|end| bytes.get(start..end));
        into.copy_from_slice(from.ok_or(Fault(address))?);
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Fault> {
        let mut bytes = self.bytes.borrow_mut();
        let start = usize::try_from(address).unwrap();
        let into = start
            .checked_add(from.len())
            .and_then(|end| bytes.get_mut(start..end));
        into.ok_or(Fault(address))?.copy_from_slice(from);
        Ok(())
    }

    fn preempted(&self) -> bool {
        self.preempt
    }
}

#[test]
fn arguments_have_xens_sizes() {
    let sizes = [
        size_of::<MapGrantRef>(),
        size_of::<UnmapGrantRef>(),
        size_of::<SetupTable>(),
        size_of::<Copy>(),
        size_of::<QuerySize>(),
        size_of::<GetStatusFrames>(),
        size_of::<GetVersion>(),
        size_of::<SwapGrantRef>(),
    ];
    assert_eq!(sizes, [32, 24, 24, 40, 16, 16, 8, 12]);
}

fn reads(world: &World, count: usize) -> Vec<Copy> {
    let grants = world.grants(0);
    let source = grant(&grants, 3, Access::ReadOnly);
    let one = Copy {
        source: side(0, source.0, 0),
        dest: own(0, 0),
        length: 8,
        flags: CopyFlags::SOURCE_REF.bits(),
        status: 77,
        ..Copy::default()
    };
    vec![one; count]
}

#[test]
fn batches_pause_and_go_on() {
    let world = World::new();
    let mut memory = Memory::new(0x4000);
    memory.put(64, &reads(&world, 100));
    memory.preempt = true;
    let (mut at, mut left) = (64, 100);
    for expected in [68, 36, 4] {
        let outcome = world.caller(1).grant_table_op(&memory, op::COPY, at, left);
        let Outcome::Continue {
            command: op::COPY,
            address,
            count,
        } = outcome
        else {
            panic!("{outcome:?}")
        };
        assert_eq!(
            (address, count),
            (64 + 40 * (100 - u64::from(expected)), expected)
        );
        (at, left) = (address, count);
    }
    assert_eq!(
        world.caller(1).grant_table_op(&memory, op::COPY, at, left),
        Outcome::Done(0)
    );
    for index in 0..100 {
        assert_eq!(memory.get::<Copy>(64 + 40 * index).status, 0);
    }
    assert_eq!(memory.reads.get(), 100, "each operation is read once");
}

#[test]
fn operations_before_a_fault_are_done() {
    let world = World::new();
    let memory = Memory::new(40 * 35 + 39);
    memory.put(0, &reads(&world, 35));
    let outcome = world.caller(1).grant_table_op(&memory, op::COPY, 0, 40);
    assert_eq!(outcome, Outcome::Done(Errno::Fault.result()));
    assert!((0..35).all(|index| memory.get::<Copy>(40 * index).status == 0));
    world.assert_unused(0);
    let outcome = world
        .caller(1)
        .grant_table_op(&memory, op::COPY, u64::MAX, 2);
    assert_eq!(outcome, Outcome::Done(Errno::Fault.result()));
}

#[test]
fn commands_are_checked() {
    let world = World::new();
    let memory = Memory::new(64);
    let call = |command, count| world.caller(1).grant_table_op(&memory, command, 0, count);
    assert_eq!(call(op::DUMP_TABLE, 1), Outcome::Done(-38));
    assert_eq!(call(13, 1), Outcome::Done(-38));
    assert_eq!(call(op::MAP, 1 << 31), Outcome::Done(-22));
    assert_eq!(call(op::MAP | 1 << 12, 1), Outcome::Done(-22));
    assert_eq!(call(op::SETUP_TABLE, 2), Outcome::Done(-22));
    assert_eq!(call(op::QUERY_SIZE, 0), Outcome::Done(-22));
    assert_eq!(call(op::MAP, 0), Outcome::Done(0));
}

#[test]
fn tables_are_listed() {
    let world = World::new();
    let memory = Memory::new(0x1000);
    let caller = world.caller(1);
    let call = |command| caller.grant_table_op(&memory, command, 0, 1);
    memory.put(
        0,
        &[SetupTable {
            domain: DomId::SELF,
            frames: 9,
            frame_list: 0x100,
            ..SetupTable::default()
        }],
    );
    assert_eq!(call(op::SETUP_TABLE), Outcome::Done(0));
    let table = caller.setup_table(DomId::SELF, 0).unwrap();
    for (index, frame) in table.frames().iter().enumerate() {
        assert_eq!(memory.get::<u64>(0x100 + 8 * index), frame.number());
    }
    drop(table);
    memory.put(
        0,
        &[SetupTable {
            domain: DomId::SELF,
            frames: 9,
            frame_list: 0xff0,
            ..SetupTable::default()
        }],
    );
    assert_eq!(call(op::SETUP_TABLE), Outcome::Done(0));
    assert_eq!(
        memory.get::<SetupTable>(0).status,
        status(Refusal::BadVirtualAddress)
    );

    memory.put(0, &[SetVersion { version: 2 }]);
    assert_eq!(call(op::SET_VERSION), Outcome::Done(0));
    memory.put(0, &[SetVersion { version: 7 }]);
    assert_eq!(call(op::SET_VERSION), Outcome::Done(-22));
    assert_eq!(memory.get::<u32>(0), 2);
    memory.put(
        0,
        &[GetStatusFrames {
            domain: DomId::SELF,
            frames: 2,
            frame_list: 0x100,
            ..GetStatusFrames::default()
        }],
    );
    assert_eq!(call(op::GET_STATUS_FRAMES), Outcome::Done(0));
    assert_eq!(memory.get::<GetStatusFrames>(0).status, 0);
    let frames = caller.status_frames(DomId::SELF, 2).unwrap();
    assert_eq!(memory.get::<u64>(0x108), frames[1].number());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any bytes are some operations: the hypercall answers, and leaves nothing in use but what is mapped.
    #[test]
    fn any_bytes_are_answered(command in 0u32..14, bytes in prop::collection::vec(any::<u8>(), 0..400), count in 0u32..12) {
        let world = World::new();
        let memory = Memory::new(bytes.len());
        memory.put(0, &bytes);
        world.caller(1).grant_table_op(&memory, command, 0, count);
        world.assert_unused(0);
    }
}
