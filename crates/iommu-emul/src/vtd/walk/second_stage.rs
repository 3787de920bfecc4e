use vm_memory::GuestMemory;

use super::{Table, present};
use crate::{
    dma::{Access, Leaf},
    spec::{
        fault::FaultReason,
        paging::{SecondStageEntry, address_bits, index, page_shift},
    },
    vtd::{Capabilities, memory::read_words},
};

/// Why a second-stage walk failed; the codes differ by mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SecondStageFault {
    /// The address is beyond the table's or the unit's width.
    Beyond,
    /// An entry of the root could not be read.
    RootAccess,
    /// Another entry could not be read.
    Access,
    /// A reserved field is set.
    Reserved,
    /// No permission for the access.
    Permission(Access),
}

impl SecondStageFault {
    pub fn reason(self, scalable: bool) -> FaultReason {
        match (self, scalable) {
            (Self::Beyond, false) => FaultReason::AddressBeyondWidth,
            (Self::Beyond, true) => FaultReason::ScalableAddressBeyondWidth,
            (Self::RootAccess, false) => FaultReason::ContextInvalid,
            (Self::RootAccess, true) => FaultReason::ScalableSecondStageRootAccess,
            (Self::Access, false) => FaultReason::SecondStageAccess,
            (Self::Access, true) => FaultReason::ScalableSecondStageAccess,
            (Self::Reserved, false) => FaultReason::SecondStageReserved,
            (Self::Reserved, true) => FaultReason::ScalableSecondStageReserved,
            (Self::Permission(Access::Read), false) => FaultReason::Read,
            (Self::Permission(Access::Read), true) => FaultReason::ScalableRead,
            (Self::Permission(Access::Write), false) => FaultReason::Write,
            (Self::Permission(Access::Write), true) => FaultReason::ScalableWrite,
        }
    }

    /// The reason when the address is the output of a first stage.
    pub fn nested_output_reason(self) -> FaultReason {
        match self {
            Self::Beyond => FaultReason::SecondStageAddressBeyondWidth,
            other => other.reason(true),
        }
    }

    /// The reason when the address is that of a first-stage table, the `root` or another.
    pub fn nested_table_reason(self, root: bool) -> FaultReason {
        match self {
            Self::Beyond => FaultReason::FirstStageBeyondWidth,
            Self::Permission(Access::Read) if root => FaultReason::FirstStageRootRead,
            Self::Permission(Access::Read) => FaultReason::FirstStageTableRead,
            Self::Permission(Access::Write) => FaultReason::FirstStageTableWrite,
            other => other.reason(true),
        }
    }
}

/// An entry and whether it maps a page; `Err` if it could not be read or has a reserved field set.
fn entry<M: GuestMemory + ?Sized>(
    memory: &M,
    capabilities: &Capabilities,
    table: u64,
    level: u8,
    address: u64,
) -> Result<(SecondStageEntry, bool), SecondStageFault> {
    let [word] =
        read_words(memory, table + 8 * index(address, level)).ok_or(SecondStageFault::Access)?;
    let entry = SecondStageEntry(word);
    let page = level == 1 || (level <= 3 && entry.page());
    if present(entry)
        && (entry.reserved(level, page, false) || capabilities.beyond_host(entry.address()))
    {
        return Err(SecondStageFault::Reserved);
    }
    Ok((entry, page))
}

/// Walks from the root to the page of `address` (§3.7).
pub(super) fn walk<M: GuestMemory + ?Sized>(
    memory: &M,
    capabilities: &Capabilities,
    table: Table,
    address: u64,
    access: Access,
) -> Result<Leaf, SecondStageFault> {
    if address >> address_bits(table.levels) != 0 {
        return Err(SecondStageFault::Beyond);
    }
    let mut leaf = Leaf {
        output: table.root,
        shift: 0,
        read: true,
        write: true,
    };
    for level in (1..=table.levels).rev() {
        let (entry, page) = entry(memory, capabilities, leaf.output, level, address).map_err(
            |fault| match fault {
                SecondStageFault::Access if level == table.levels => SecondStageFault::RootAccess,
                fault => fault,
            },
        )?;
        leaf.read &= entry.read();
        leaf.write &= entry.write();
        if !leaf.allows(access) {
            return Err(SecondStageFault::Permission(access));
        }
        leaf.output = entry.address();
        if page {
            leaf.shift = page_shift(level);
            break;
        }
    }
    Ok(leaf)
}

/// Visits the pages that overlap a range; see [`super::second_stage_pages`].
pub(super) fn pages<M: GuestMemory + ?Sized>(
    memory: &M,
    capabilities: &Capabilities,
    table: Table,
    (first, last): (u64, u64),
    budget: &mut u64,
    visit: &mut impl FnMut(u64, Leaf),
) -> Option<()> {
    let last = last.min((1 << address_bits(table.levels)) - 1);
    if first > last {
        return Some(());
    }
    let root = Leaf {
        output: table.root,
        shift: page_shift(table.levels) + 9,
        read: true,
        write: true,
    };
    pages_below(
        memory,
        capabilities,
        root,
        table.levels,
        (first, last),
        budget,
        visit,
    )
}

/// Visits the pages below the table that `above` leads to.
fn pages_below<M: GuestMemory + ?Sized>(
    memory: &M,
    capabilities: &Capabilities,
    above: Leaf,
    level: u8,
    (first, last): (u64, u64),
    budget: &mut u64,
    visit: &mut impl FnMut(u64, Leaf),
) -> Option<()> {
    let shift = page_shift(level);
    let mut address = first & !((1 << shift) - 1);
    loop {
        *budget = budget.checked_sub(1)?;
        let end = address | ((1 << shift) - 1);
        if let Ok((entry, page)) = entry(memory, capabilities, above.output, level, address) {
            let leaf = Leaf {
                output: entry.address(),
                shift,
                read: above.read && entry.read(),
                write: above.write && entry.write(),
            };
            if page && (leaf.read || leaf.write) {
                visit(address, leaf);
            } else if leaf.read || leaf.write {
                let range = (first.max(address), last.min(end));
                pages_below(memory, capabilities, leaf, level - 1, range, budget, visit)?;
            }
        }
        if end >= last {
            return Some(());
        }
        address = end + 1;
    }
}
