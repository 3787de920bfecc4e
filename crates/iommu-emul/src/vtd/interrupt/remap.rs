use pio_mmio_bus::{
    interrupt::{InterruptError, MsiMessage},
    pci::RequesterId,
};
use vm_memory::GuestMemory;

use crate::{
    spec::{
        fault::{FaultReason, FaultRecord},
        interrupt::{InterruptEntry, PostedControl, RANGE_FIRST, RANGE_LAST, RequestAddress},
        low16, low32,
        register::irta,
    },
    vtd::{
        PhysicalMemory, Unit,
        memory::{read_words, update_word},
        unit::lock,
    },
};

/// What the commands latched of interrupt remapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::vtd) struct InterruptTable {
    /// Remapping is on.
    pub enabled: bool,
    /// Compatibility format requests pass.
    pub compatibility: bool,
    /// The interrupt remapping table address register.
    pub address: u64,
}

/// Where an interrupt request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remapped {
    /// To the interrupt controller, as this message.
    Message(MsiMessage),
    /// Into a posted interrupt descriptor.
    Posted {
        index: u16,
        entry: InterruptEntry,
        extended: bool,
    },
}

/// A blocked request: why, the index it named, and whether not to record it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockedInterrupt {
    reason: FaultReason,
    index: u16,
    quiet: bool,
}

/// The index that a remappable request names (§5.1.3); `None` for one in compatibility format or beyond 16 bits.
pub(super) fn index(message: &MsiMessage) -> Option<u16> {
    let address = RequestAddress(low32(message.address));
    let subhandle = if address.subhandle_valid() {
        low16(message.data.into())
    } else {
        0
    };
    address
        .remappable()
        .then(|| address.handle().checked_add(subhandle))
        .flatten()
}

impl<M: PhysicalMemory> Unit<M> {
    /// Sends an interrupt request of a device through remapping, if that is on. What is blocked is reported in the fault log.
    ///
    /// # Errors
    ///
    /// [`InterruptError::Blocked`] if remapping blocks it or if its address is none of an interrupt.
    pub fn deliver(&self, message: MsiMessage) -> Result<(), InterruptError> {
        let blocked = match self.remap(&message)? {
            Ok(Remapped::Message(message)) => return self.sink().send(message),
            Ok(Remapped::Posted {
                index,
                entry,
                extended,
            }) => match post(&*self.memory().memory(), entry, extended) {
                Ok(notification) => {
                    return notification.map_or(Ok(()), |message| self.sink().send(message));
                }
                Err(reason) => BlockedInterrupt {
                    reason,
                    index,
                    quiet: entry.fault_processing_disabled(),
                },
            },
            Err(blocked) => blocked,
        };
        if !blocked.quiet {
            self.report(FaultRecord::interrupt(
                blocked.reason,
                message.requester.0,
                blocked.index,
            ));
        }
        Err(InterruptError::Blocked(message))
    }

    /// Looks up where a request goes (§5.1.4), without effect. The outer error is a request that is none of an interrupt: a
    /// message to memory, which never passes here.
    pub(super) fn remap(
        &self,
        message: &MsiMessage,
    ) -> Result<Result<Remapped, BlockedInterrupt>, InterruptError> {
        if !(RANGE_FIRST..=RANGE_LAST).contains(&(message.address & 0xffff_ffff)) {
            return Err(InterruptError::Blocked(*message));
        }
        let table = *lock(&self.interrupts);
        if !table.enabled {
            return Ok(Ok(Remapped::Message(*message)));
        }
        if message.address >> 32 != 0 {
            return Err(InterruptError::Blocked(*message));
        }
        Ok(self.remap_enabled(table, message))
    }

    fn remap_enabled(
        &self,
        table: InterruptTable,
        message: &MsiMessage,
    ) -> Result<Remapped, BlockedInterrupt> {
        let blocked = |reason, index, quiet| {
            Err(BlockedInterrupt {
                reason,
                index,
                quiet,
            })
        };
        let extended = irta::extended(table.address);
        let address = RequestAddress(low32(message.address));
        if !address.remappable() {
            return if extended || !table.compatibility {
                blocked(FaultReason::InterruptCompatibility, 0, false)
            } else {
                Ok(Remapped::Message(*message))
            };
        }
        if address.subhandle_valid() && message.data >> 16 != 0 {
            return blocked(
                FaultReason::InterruptRequestReserved,
                address.handle(),
                false,
            );
        }
        let Some(index) = index(message).filter(|&i| u64::from(i) < irta::entries(table.address))
        else {
            return blocked(FaultReason::InterruptIndex, address.handle(), false);
        };
        let place =
            irta::address(table.address).checked_add(InterruptEntry::SIZE * u64::from(index));
        let memory = self.memory().memory();
        let Some(words) = place.and_then(|place| read_words(&*memory, place)) else {
            return blocked(FaultReason::InterruptEntryAccess, index, false);
        };
        let entry = InterruptEntry(words);
        let quiet = entry.fault_processing_disabled();
        if !entry.present() {
            return blocked(FaultReason::InterruptEntryNotPresent, index, quiet);
        }
        let posting = self.capabilities().config().posted_interrupts;
        if entry.reserved(extended) || (entry.posted() && !posting) {
            return blocked(FaultReason::InterruptEntryReserved, index, quiet);
        }
        match entry.verifies(message.requester.0) {
            Some(true) if entry.posted() => Ok(Remapped::Posted {
                index,
                entry,
                extended,
            }),
            Some(true) => Ok(Remapped::Message(remapped(
                &entry,
                extended,
                message.requester,
            ))),
            Some(false) | None => blocked(FaultReason::InterruptSource, index, quiet),
        }
    }
}

/// The message that an entry of the remapped format produces, in the format of the SDM (vol. 3, §11.11), with bits 31:8 of an
/// x2APIC destination in bits 63:40 of the address as KVM's X2APIC API has them.
fn remapped(entry: &InterruptEntry, extended: bool, requester: RequesterId) -> MsiMessage {
    let mut address = address_of(entry.destination(extended));
    if entry.logical() {
        address |= 1 << 2;
    }
    if entry.redirection_hint() {
        address |= 1 << 3;
    }
    let mut data = u32::from(entry.vector()) | u32::from(entry.delivery_mode()) << 8;
    if entry.level() {
        data |= 1 << 15 | 1 << 14;
    }
    MsiMessage {
        requester,
        address,
        data,
    }
}

fn address_of(destination: u32) -> u64 {
    let [low, ..] = destination.to_le_bytes();
    RANGE_FIRST | u64::from(low) << 12 | u64::from(destination & !0xff) << 32
}

/// Posts an interrupt (§5.2.3): sets its request bit, and returns the notification if one is due.
fn post<M: GuestMemory + ?Sized>(
    memory: &M,
    entry: InterruptEntry,
    extended: bool,
) -> Result<Option<MsiMessage>, FaultReason> {
    let descriptor = entry.posted_descriptor();
    let control_at = descriptor
        .checked_add(PostedControl::OFFSET)
        .ok_or(FaultReason::PostedDescriptorAccess)?;
    let [word] = read_words(memory, control_at).ok_or(FaultReason::PostedDescriptorAccess)?;
    if PostedControl(word).reserved() {
        return Err(FaultReason::PostedDescriptorReserved);
    }
    let vector = u64::from(entry.vector());
    let request = 1 << (vector % 64);
    let _previous = update_word(memory, descriptor + 8 * (vector / 64), |word| {
        Some(word | request)
    })
    .ok_or(FaultReason::PostedDescriptorAccess)?;
    let notified = update_word(memory, control_at, |word| {
        PostedControl(word)
            .notifies(entry.urgent())
            .then_some(word | PostedControl::OUTSTANDING)
    })
    .ok_or(FaultReason::PostedDescriptorAccess)?;
    Ok(notified.ok().map(|word| {
        let control = PostedControl(word);
        MsiMessage {
            requester: RequesterId(0),
            address: address_of(control.destination(extended)),
            data: control.vector().into(),
        }
    }))
}
