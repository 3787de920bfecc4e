use vm_memory::GuestMemory;

use super::{Table, second_stage};
use crate::{
    dma::{Access, Leaf},
    spec::{
        fault::FaultReason,
        paging::{FirstStageEntry, canonical, index, page_shift},
    },
    vtd::{
        Capabilities,
        memory::{read_words, update_word},
    },
};

/// Walks from the root to the page of `address` (§3.6), with user privilege, setting accessed and dirty flags on the way. With
/// `second`, the addresses of the tables go through that second stage (§3.8); the page's is left to the caller.
pub(super) fn walk<M: GuestMemory + ?Sized>(
    memory: &M,
    capabilities: &Capabilities,
    table: Table,
    second: Option<Table>,
    address: u64,
    access: Access,
) -> Result<Leaf, FaultReason> {
    if !canonical(address, table.levels) {
        return Err(FaultReason::NotCanonical);
    }
    let physical = |address, root| match second {
        None => Ok(address),
        Some(second) => {
            // The accessed flag makes a walk write to its tables.
            second_stage::walk(memory, capabilities, second, address, Access::Read)
                .and_then(|_| {
                    second_stage::walk(memory, capabilities, second, address, Access::Write)
                })
                .map(|leaf| leaf.output | (address & ((1 << leaf.shift) - 1)))
                .map_err(|fault| fault.nested_table_reason(root))
        }
    };
    let mut leaf = Leaf {
        output: table.root,
        shift: 0,
        read: true,
        write: true,
    };
    for level in (1..=table.levels).rev() {
        let root = level == table.levels;
        let place = physical(leaf.output + 8 * index(address, level), root)?;
        let (entry, page) = used_entry(memory, capabilities, place, level, &mut leaf, access)
            .map_err(|reason| match reason {
                FaultReason::FirstStageAccess if root => FaultReason::FirstStageRootAccess,
                reason => reason,
            })?;
        leaf.output = entry.address();
        if page {
            leaf.shift = page_shift(level);
            leaf.output &= !((1 << leaf.shift) - 1);
            // A page whose dirty flag a write has not set yet must not be written from the cache.
            leaf.write &= entry.0 & FirstStageEntry::DIRTY != 0;
            break;
        }
    }
    Ok(leaf)
}

/// Reads and checks the entry at `place` and sets its flags for `access`; starts over if the guest changes it meanwhile.
fn used_entry<M: GuestMemory + ?Sized>(
    memory: &M,
    capabilities: &Capabilities,
    place: u64,
    level: u8,
    leaf: &mut Leaf,
    access: Access,
) -> Result<(FirstStageEntry, bool), FaultReason> {
    const ATTEMPTS: usize = 8;
    for _ in 0..ATTEMPTS {
        let [word] = read_words(memory, place).ok_or(FaultReason::FirstStageAccess)?;
        let entry = FirstStageEntry(word);
        if !entry.present() {
            return Err(FaultReason::FirstStageNotPresent);
        }
        let page = level == 1 || (level <= 3 && entry.page());
        if entry.reserved(level, page) || capabilities.beyond_host(entry.address()) {
            return Err(FaultReason::FirstStageReserved);
        }
        if !entry.user() {
            return Err(FaultReason::Privilege);
        }
        let write = leaf.write && entry.write();
        if access == Access::Write && !write {
            return Err(FaultReason::ScalableWrite);
        }
        let mut used = word | FirstStageEntry::ACCESSED;
        if page && access == Access::Write {
            used |= FirstStageEntry::DIRTY;
        }
        if used != word {
            let swapped = update_word(memory, place, |current| (current == word).then_some(used))
                .ok_or(FaultReason::FirstStageAccess)?;
            if swapped.is_err() {
                continue;
            }
        }
        leaf.write = write;
        return Ok((FirstStageEntry(used), page));
    }
    Err(FaultReason::FirstStageFlagUpdate)
}
