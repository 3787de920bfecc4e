//! The guest's side of its grant table: who may use which of its frames.
//!
//! Nothing here takes a lock. An entry belongs to whoever allocated its reference; the table may be used from any thread.

mod free_list;

use std::sync::atomic::Ordering;

use crate::spec::DomId;
use crate::spec::grant::{EntryFlags, GrantRef, Header, RESERVED_ENTRIES};
use crate::statuses;
use crate::table::{EntryTable, Transitive};
use free_list::FreeList;

/// Why an entry was not changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The table has no such entry, or its reference is not allocated.
    #[error("{0:?} is not an allocated reference")]
    Reference(GrantRef),
    /// The other domain still uses the frame.
    #[error("{0:?} is in use")]
    InUse(GrantRef),
    /// The frame's number does not fit the version of the table.
    #[error("frame {0:#x} does not fit the table")]
    Frame(u64),
    /// Version 1 has no such grants.
    #[error("parts of pages and transitive grants need version 2")]
    Version,
    /// A frame is on its way into the entry.
    #[error("the transfer into {0:?} is under way")]
    TransferUnderWay(GrantRef),
}

/// Whether the other domain may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// It may read only.
    ReadOnly,
    /// It may read and write.
    ReadWrite,
}

impl Access {
    fn flags(self) -> EntryFlags {
        match self {
            Self::ReadOnly => EntryFlags::READONLY,
            Self::ReadWrite => EntryFlags::empty(),
        }
    }
}

/// A guest's own grant table.
#[derive(Debug)]
pub struct Grants {
    table: EntryTable,
    free: FreeList,
}

impl Grants {
    /// The grants of a table in which only the reserved entries may be in use.
    pub fn new(table: EntryTable) -> Self {
        let free = FreeList::new(RESERVED_ENTRIES, table.entries());
        Self { table, free }
    }

    /// The table's memory.
    pub fn table(&self) -> &EntryTable {
        &self.table
    }

    /// Takes a reference that is not in use; none if all are.
    pub fn allocate(&self) -> Option<GrantRef> {
        self.free.pop().map(GrantRef)
    }

    /// Gives a reference back. Its entry must have been ended.
    ///
    /// # Errors
    ///
    /// The reference is not allocated, or its entry is not ended or still in use.
    pub fn release(&self, reference: GrantRef) -> Result<(), GrantError> {
        let header = self.header(reference)?;
        if !header.flags.is_empty() || self.is_used(reference)? {
            return Err(GrantError::InUse(reference));
        }
        if !self.free.push(reference.0) {
            return Err(GrantError::Reference(reference));
        }
        Ok(())
    }

    /// Lets `domain` use the whole frame.
    ///
    /// # Errors
    ///
    /// The entry is not there or not ended, or the number of the frame does not fit.
    pub fn grant(
        &self,
        reference: GrantRef,
        domain: DomId,
        frame: u64,
        access: Access,
    ) -> Result<(), GrantError> {
        self.check_ended(reference)?;
        if !self.table.set_frame(reference, frame) {
            return Err(GrantError::Frame(frame));
        }
        self.publish(
            reference,
            EntryFlags::PERMIT_ACCESS | access.flags(),
            domain,
        )
    }

    /// Lets `domain` copy from and to `length` bytes of the frame from `first` on (version 2). It cannot map them.
    ///
    /// # Errors
    ///
    /// As [`grant`](Self::grant); also in version 1.
    pub fn grant_range(
        &self,
        reference: GrantRef,
        domain: DomId,
        frame: u64,
        (first, length): (u16, u16),
        access: Access,
    ) -> Result<(), GrantError> {
        self.check_ended(reference)?;
        if !self.table.set_range(reference, first, length) {
            return Err(GrantError::Version);
        }
        if !self.table.set_frame(reference, frame) {
            return Err(GrantError::Frame(frame));
        }
        let flags = EntryFlags::PERMIT_ACCESS | EntryFlags::SUB_PAGE | access.flags();
        self.publish(reference, flags, domain)
    }

    /// Lets `domain` copy from and to what another domain granted to this one (version 2).
    ///
    /// # Errors
    ///
    /// As [`grant`](Self::grant); also in version 1.
    pub fn grant_transitive(
        &self,
        reference: GrantRef,
        domain: DomId,
        to: Transitive,
        access: Access,
    ) -> Result<(), GrantError> {
        self.check_ended(reference)?;
        if !self.table.set_transitive(reference, to) {
            return Err(GrantError::Version);
        }
        self.publish(reference, EntryFlags::TRANSITIVE | access.flags(), domain)
    }

    /// Whether the other domain uses the entry's frame now. It may begin to at any time until the entry is ended.
    ///
    /// # Errors
    ///
    /// The table has no such entry.
    pub fn is_used(&self, reference: GrantRef) -> Result<bool, GrantError> {
        let flags = match self.table.status(reference) {
            Some(status) => EntryFlags::from_bits_retain(status.load(Ordering::Acquire)),
            None => self.header(reference)?.flags,
        };
        Ok(flags.intersects(EntryFlags::IN_USE))
    }

    /// Forbids writing from now on.
    ///
    /// # Errors
    ///
    /// The entry is not there, grants nothing, or is used for writing.
    pub fn make_read_only(&self, reference: GrantRef) -> Result<(), GrantError> {
        let word = self.word(reference)?;
        // In version 2 the status tells: whoever begins to write after it was read looks at the header again.
        let changed = word.fetch_update(Ordering::SeqCst, Ordering::Relaxed, |word| {
            let header = Header::from_word(word);
            let refuse = header.flags.contains(EntryFlags::WRITING)
                || !header.flags.contains(EntryFlags::PERMIT_ACCESS);
            let flags = header.flags | EntryFlags::READONLY;
            (!refuse).then(|| Header { flags, ..header }.word())
        });
        let writing = self.table.status(reference).is_some_and(|status| {
            EntryFlags::from_bits_retain(status.load(Ordering::SeqCst))
                .contains(EntryFlags::WRITING)
        });
        match changed {
            Ok(_) if !writing => Ok(()),
            _ => Err(GrantError::InUse(reference)),
        }
    }

    /// Ends the grant. In version 2 nobody can begin to use it even when this fails because it is in use: end it again later.
    ///
    /// # Errors
    ///
    /// The entry is not there, or in use.
    pub fn end(&self, reference: GrantRef) -> Result<(), GrantError> {
        let word = self.word(reference)?;
        if let Some(status) = self.table.status(reference) {
            let status = EntryFlags::from_bits_retain(statuses::end(word, status));
            let used = status.intersects(EntryFlags::IN_USE);
            return if used {
                Err(GrantError::InUse(reference))
            } else {
                Ok(())
            };
        }
        word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let used = Header::from_word(word).flags.intersects(EntryFlags::IN_USE);
            (!used).then_some(0)
        })
        .map(drop)
        .map_err(|_| GrantError::InUse(reference))
    }

    /// Offers room at `frame` for a frame that `domain` gives away.
    ///
    /// # Errors
    ///
    /// As [`grant`](Self::grant).
    pub fn accept_transfer(
        &self,
        reference: GrantRef,
        domain: DomId,
        frame: u64,
    ) -> Result<(), GrantError> {
        self.check_ended(reference)?;
        if !self.table.set_frame(reference, frame) {
            return Err(GrantError::Frame(frame));
        }
        self.publish(reference, EntryFlags::ACCEPT_TRANSFER, domain)
    }

    /// Ends the offer: the frame that has come, or none, after which none will come.
    ///
    /// # Errors
    ///
    /// The entry is not there, or a frame is on its way: ask again soon.
    pub fn end_transfer(&self, reference: GrantRef) -> Result<Option<u64>, GrantError> {
        let word = self.word(reference)?;
        let withdrawn = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            let committed = EntryFlags::TRANSFER_COMMITTED;
            (!Header::from_word(word).flags.contains(committed)).then_some(0)
        });
        match withdrawn {
            Ok(_) => Ok(None),
            Err(word) => {
                let completed = EntryFlags::TRANSFER_COMPLETED;
                if !Header::from_word(word).flags.contains(completed) {
                    return Err(GrantError::TransferUnderWay(reference));
                }
                let frame = self.table.frame(reference);
                self.word(reference)?.store(0, Ordering::Relaxed);
                Ok(frame)
            }
        }
    }

    fn word(&self, reference: GrantRef) -> Result<&std::sync::atomic::AtomicU32, GrantError> {
        self.table
            .header(reference)
            .ok_or(GrantError::Reference(reference))
    }

    fn header(&self, reference: GrantRef) -> Result<Header, GrantError> {
        Ok(Header::from_word(
            self.word(reference)?.load(Ordering::Acquire),
        ))
    }

    /// The entry is there and grants nothing, so that its body may be changed.
    fn check_ended(&self, reference: GrantRef) -> Result<(), GrantError> {
        if self.header(reference)?.flags.is_empty() && !self.is_used(reference)? {
            Ok(())
        } else {
            Err(GrantError::InUse(reference))
        }
    }

    /// Makes the entry valid, after its body.
    fn publish(
        &self,
        reference: GrantRef,
        flags: EntryFlags,
        domain: DomId,
    ) -> Result<(), GrantError> {
        let header = Header { flags, domain };
        self.word(reference)?
            .store(header.word(), Ordering::Release);
        Ok(())
    }
}
