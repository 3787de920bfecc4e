//! Walks of the guest's tables: from a requester to its context, from an address to a page.

mod context;
mod first_stage;
mod second_stage;

use vm_memory::GuestMemory;

use super::Capabilities;
use crate::{
    dma::{Access, Leaf},
    spec::{
        fault::FaultReason,
        interrupt::{RANGE_FIRST, RANGE_LAST},
        paging::SecondStageEntry,
    },
};
pub(crate) use context::{Context, RootTable};
use second_stage::SecondStageFault;

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
    let leaf = match context.stages {
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
    leaf.clear_of_interrupts(address).ok_or(interrupt)
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
