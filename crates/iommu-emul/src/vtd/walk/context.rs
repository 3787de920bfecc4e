use vm_memory::GuestMemory;

use super::{Stages, Table};
use crate::{
    spec::{
        fault::FaultReason,
        register::rtaddr,
        translation::{
            ContextEntry, PasidDirectoryEntry, PasidEntry, PasidTranslationType, RootEntry,
            ScalableContextEntry, TranslationType,
        },
    },
    vtd::{Capabilities, memory::read_words},
};

/// What the tables say of a requester, and of its PASID in scalable mode: an entry of the context- and PASID-cache (§6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    /// Domain identifier.
    pub domain: u16,
    /// The PASID that requests use, RID_PASID for those without; none in legacy mode.
    pub pasid: Option<u32>,
    /// Found in scalable mode.
    pub scalable: bool,
    /// FPD of an entry on the way: faults are not recorded.
    pub quiet: bool,
    /// How requests are translated.
    pub stages: Stages,
}

/// The root table address register as latched by the last Set Root Table Pointer command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RootTable(pub u64);

/// A fault, and whether an entry on the way says not to record it.
type Blocked = (FaultReason, bool);

impl RootTable {
    /// Walks to the context of `source` and `pasid` (§3.4).
    pub fn context<M: GuestMemory + ?Sized>(
        self,
        memory: &M,
        capabilities: &Capabilities,
        source: u16,
        pasid: Option<u32>,
    ) -> Result<Context, Blocked> {
        match rtaddr::mode(self.0) {
            0 if pasid.is_some() => Err((FaultReason::PasidInLegacyMode, false)),
            0 => self.legacy(memory, capabilities, source),
            1 => self.scalable(memory, capabilities, source, pasid),
            _ => Err((FaultReason::RootTableAddress, false)),
        }
    }

    fn legacy<M: GuestMemory + ?Sized>(
        self,
        memory: &M,
        capabilities: &Capabilities,
        source: u16,
    ) -> Result<Context, Blocked> {
        let [bus, devfn] = source.to_be_bytes();
        let place = rtaddr::address(self.0) + RootEntry::SIZE * u64::from(bus);
        let [low, high] = read_words(memory, place).ok_or((FaultReason::RootAccess, false))?;
        let root = RootEntry(low);
        if !root.present() {
            return Err((FaultReason::RootNotPresent, false));
        }
        if root.reserved() || high != 0 || capabilities.beyond_host(root.context_table()) {
            return Err((FaultReason::RootReserved, false));
        }
        let place = root.context_table() + ContextEntry::SIZE * u64::from(devfn);
        let entry =
            ContextEntry(read_words(memory, place).ok_or((FaultReason::ContextAccess, false))?);
        let quiet = entry.fault_processing_disabled();
        let blocked = |reason| Err((reason, quiet));
        if !entry.present() {
            return blocked(FaultReason::ContextNotPresent);
        }
        if entry.reserved() || capabilities.beyond_host(entry.second_stage()) {
            return blocked(FaultReason::ContextReserved);
        }
        let levels = entry.address_width() + 2;
        let table = Table {
            root: entry.second_stage(),
            levels,
        };
        let config = capabilities.config();
        let supported = capabilities.supports_levels(levels);
        let stages = match entry.translation_type() {
            TranslationType::Untranslated if supported => Stages::Second(table),
            TranslationType::DeviceTlb if supported && config.device_tlb => Stages::Second(table),
            TranslationType::PassThrough if config.pass_through && supported => Stages::PassThrough,
            _ => return blocked(FaultReason::ContextInvalid),
        };
        Ok(Context {
            domain: entry.domain(),
            pasid: None,
            scalable: false,
            quiet,
            stages,
        })
    }

    fn scalable<M: GuestMemory + ?Sized>(
        self,
        memory: &M,
        capabilities: &Capabilities,
        source: u16,
        pasid: Option<u32>,
    ) -> Result<Context, Blocked> {
        let [bus, devfn] = source.to_be_bytes();
        let half = u64::from(devfn >> 7);
        let place = rtaddr::address(self.0) + RootEntry::SIZE * u64::from(bus) + 8 * half;
        let [word] = read_words(memory, place).ok_or((FaultReason::ScalableRootAccess, false))?;
        let root = RootEntry(word);
        if !root.present() {
            return Err((FaultReason::ScalableRootNotPresent, false));
        }
        if root.reserved() || capabilities.beyond_host(root.context_table()) {
            return Err((FaultReason::ScalableRootReserved, false));
        }
        let place = root.context_table() + ScalableContextEntry::SIZE * u64::from(devfn & 0x7f);
        let entry = ScalableContextEntry(
            read_words(memory, place).ok_or((FaultReason::ScalableContextAccess, false))?,
        );
        let quiet = entry.fault_processing_disabled();
        if !entry.present() {
            return Err((FaultReason::ScalableContextNotPresent, quiet));
        }
        if entry.reserved() || capabilities.beyond_host(entry.pasid_directory()) {
            return Err((FaultReason::ScalableContextReserved, quiet));
        }
        let (pasid, beyond) = match pasid {
            None => (entry.rid_pasid(), FaultReason::RidPasid),
            Some(_) if !entry.pasid_enabled() => {
                return Err((FaultReason::PasidDisabled, quiet));
            }
            Some(pasid) => (pasid, FaultReason::PasidBeyondDirectory),
        };
        if u64::from(pasid) >= entry.pasids() {
            return Err((beyond, quiet));
        }
        pasid_context(memory, capabilities, entry.pasid_directory(), pasid, quiet)
    }
}

/// Walks the PASID directory and table (§3.4.3).
fn pasid_context<M: GuestMemory + ?Sized>(
    memory: &M,
    capabilities: &Capabilities,
    directory: u64,
    pasid: u32,
    quiet: bool,
) -> Result<Context, Blocked> {
    let place =
        directory + PasidDirectoryEntry::SIZE * u64::from(PasidDirectoryEntry::index(pasid));
    let [word] = read_words(memory, place).ok_or((FaultReason::PasidDirectoryAccess, quiet))?;
    let directory = PasidDirectoryEntry(word);
    let quiet = quiet || directory.fault_processing_disabled();
    if !directory.present() {
        return Err((FaultReason::PasidDirectoryNotPresent, quiet));
    }
    if directory.reserved() || capabilities.beyond_host(directory.pasid_table()) {
        return Err((FaultReason::PasidDirectoryReserved, quiet));
    }
    let place = directory.pasid_table() + PasidEntry::SIZE * u64::from(PasidEntry::index(pasid));
    let entry =
        PasidEntry(read_words(memory, place).ok_or((FaultReason::PasidEntryAccess, quiet))?);
    let quiet = quiet || entry.fault_processing_disabled();
    if !entry.present() {
        return Err((FaultReason::PasidEntryNotPresent, quiet));
    }
    if entry.reserved(true)
        || capabilities.beyond_host(entry.second_stage())
        || capabilities.beyond_host(entry.first_stage())
    {
        return Err((FaultReason::PasidEntryReserved, quiet));
    }
    let second = Table {
        root: entry.second_stage(),
        levels: entry.address_width() + 2,
    };
    let second = capabilities
        .supports_levels(second.levels)
        .then_some(second);
    let first_levels = match entry.first_stage_mode() {
        0 if capabilities.supports_levels(4) => Some(4),
        1 if capabilities.supports_levels(5) => Some(5),
        _ => None,
    };
    let first = first_levels.map(|levels| Table {
        root: entry.first_stage(),
        levels,
    });
    let config = capabilities.config();
    let stages = match (entry.translation_type(), first, second) {
        (PasidTranslationType::FirstStage, Some(first), _) if config.first_stage => {
            Stages::First(first)
        }
        (PasidTranslationType::SecondStage, _, Some(second)) => Stages::Second(second),
        (PasidTranslationType::Nested, Some(first), Some(second)) if config.nested => {
            Stages::Nested(first, second)
        }
        (PasidTranslationType::PassThrough, _, _) if config.pass_through => Stages::PassThrough,
        _ => return Err((FaultReason::PasidEntryInvalid, quiet)),
    };
    Ok(Context {
        domain: entry.domain(),
        pasid: Some(pasid),
        scalable: true,
        quiet,
        stages,
    })
}
