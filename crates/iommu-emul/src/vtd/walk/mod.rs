//! Walks of the guest's tables: from a requester to its context, from an address to a page.

mod context;
mod first_stage;
mod second_stage;

use vm_memory::GuestMemory;

use super::Capabilities;
use crate::spec::{
    fault::FaultReason,
    interrupt::{RANGE_FIRST, RANGE_LAST},
    paging::SecondStageEntry,
};
pub(crate) use context::{Context, RootTable};
use second_stage::SecondStageFault;

/// What a request wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read,
    /// Write.
    Write,
}

/// A page that an address translates to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// First guest-physical address of the page, aligned to its size.
    pub output: u64,
    /// log2 of the page size in bytes.
    pub shift: u32,
    /// Reads are allowed.
    pub read: bool,
    /// Writes are allowed.
    pub write: bool,
}

impl Leaf {
    /// The identity page of 1 GiB around `address`.
    fn identity(address: u64) -> Self {
        Self {
            output: address & !((1 << 30) - 1),
            shift: 30,
            read: true,
            write: true,
        }
    }

    #[inline]
    pub fn allows(self, access: Access) -> bool {
        match access {
            Access::Read => self.read,
            Access::Write => self.write,
        }
    }

    /// The part of this page, 2^`shift` bytes, that `address` translates into.
    fn narrow(self, address: u64, shift: u32) -> Self {
        let offset = address & ((1 << self.shift) - 1);
        Self {
            output: (self.output & !((1 << self.shift) - 1) | offset) & !((1 << shift) - 1),
            shift,
            ..self
        }
    }

    fn last(self) -> u64 {
        self.output | ((1 << self.shift) - 1)
    }
}

/// How requests in a context are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stages {
    /// Not at all.
    PassThrough,
    /// Through a second-stage table.
    Second(Table),
    /// Through a first-stage table.
    First(Table),
    /// Through a first-stage table whose addresses go through a second-stage table.
    Nested(Table, Table),
}

/// A paging table: the address of its root and its levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub root: u64,
    pub levels: u8,
}

/// Translates `address` in `context`. The page that is returned overlaps the interrupt address range neither before nor after
/// translation (§3.14), so whoever caches it need not check.
pub(crate) fn translate<M: GuestMemory + ?Sized>(
    memory: &M,
    capabilities: &Capabilities,
    context: &Context,
    address: u64,
    access: Access,
) -> Result<Leaf, FaultReason> {
    let scalable = context.scalable;
    let second = |fault: SecondStageFault| fault.reason(scalable);
    let interrupt = if scalable {
        FaultReason::ScalableInterruptAddress
    } else {
        FaultReason::InterruptAddress
    };
    if (RANGE_FIRST..=RANGE_LAST).contains(&address) {
        return Err(interrupt);
    }
    let mut leaf = match context.stages {
        Stages::PassThrough if capabilities.beyond_host(address) => {
            return Err(second(SecondStageFault::Beyond));
        }
        Stages::PassThrough => Leaf::identity(address),
        Stages::Second(table) => {
            second_stage::walk(memory, capabilities, table, address, access).map_err(second)?
        }
        Stages::First(table) => {
            first_stage::walk(memory, capabilities, table, None, address, access)?
        }
        Stages::Nested(first, table) => {
            let inner =
                first_stage::walk(memory, capabilities, first, Some(table), address, access)?;
            let between = inner.narrow(address, 12).output | (address & 0xfff);
            let outer = second_stage::walk(memory, capabilities, table, between, access)
                .map_err(|fault| fault.nested_output_reason())?;
            Leaf {
                read: inner.read && outer.read,
                write: inner.write && outer.write,
                ..outer.narrow(between, outer.shift.min(inner.shift))
            }
        }
    };
    loop {
        let input = address & !((1 << leaf.shift) - 1);
        let overlaps = |first: u64, last: u64| first <= RANGE_LAST && RANGE_FIRST <= last;
        if !overlaps(input, input | ((1 << leaf.shift) - 1)) && !overlaps(leaf.output, leaf.last())
        {
            return Ok(leaf);
        }
        if leaf.shift <= 12 {
            return Err(interrupt);
        }
        leaf = leaf.narrow(address, leaf.shift - 9);
    }
}

/// The page around `address` when translation is off; `None` in the interrupt address range.
pub(crate) fn bypass(address: u64) -> Option<Leaf> {
    let mut leaf = Leaf::identity(address);
    while leaf.output <= RANGE_LAST && RANGE_FIRST <= leaf.last() {
        if leaf.shift <= 12 {
            return None;
        }
        leaf = leaf.narrow(address, leaf.shift - 9);
    }
    Some(leaf)
}

/// Calls `visit` with each page that the second-stage `table` maps and that overlaps `first..=last`: its first address and the
/// page. Entries that fault are skipped, as a walk to them would be blocked. A guest can make its tables say that there are 2^36
/// pages: each entry that is looked at costs one of `budget`, and the walk ends without success when that is spent.
pub(crate) fn second_stage_pages<M: GuestMemory + ?Sized>(
    memory: &M,
    capabilities: &Capabilities,
    table: Table,
    (first, last): (u64, u64),
    budget: &mut u64,
    visit: &mut impl FnMut(u64, Leaf),
) -> Option<()> {
    second_stage::pages(memory, capabilities, table, (first, last), budget, visit)
}

/// Whether a second-stage entry is present: readable or writable.
fn present(entry: SecondStageEntry) -> bool {
    entry.read() || entry.write()
}
