//! A domain's grant table: the shared entries, and those in use.

use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::active::{Active, Pin, STRIPE, Stripe};
use crate::frame::Frame;
use crate::guest::Access;
use crate::spec::grant::{EntryFlags, GrantRef, Header, RESERVED_ENTRIES, Refusal};
use crate::spec::{DomId, Errno};
use crate::statuses;
use crate::table::{EntryTable, Version};

/// How often a header that the guest keeps changing is tried.
const ATTEMPTS: usize = 5;

/// What the entry is wanted for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Map,
    Copy,
}

/// A domain's grant table. Locked for reading to use entries, for writing to change frames and version.
#[derive(Debug)]
pub(super) struct Table {
    entries: EntryTable,
    active: Vec<Mutex<Stripe>>,
    max_frames: usize,
}

impl Table {
    pub(super) fn new(max_frames: usize) -> Self {
        let mut table = Self {
            entries: EntryTable::default(),
            active: Vec::new(),
            max_frames,
        };
        table.set_frames(Version::V1, 1);
        table
    }

    pub(super) fn entries(&self) -> &EntryTable {
        &self.entries
    }

    pub(super) fn max_frames(&self) -> usize {
        self.max_frames
    }

    /// Keeps the frames there are and adds what is missing.
    fn set_frames(&mut self, version: Version, count: usize) {
        let extend = |frames: &[Frame], count: usize| -> Vec<Frame> {
            let have = frames.iter().cloned();
            have.chain(std::iter::repeat_with(Frame::allocate))
                .take(count)
                .collect()
        };
        let frames = extend(self.entries.frames(), count);
        let statuses = extend(self.entries.statuses(), version.status_frames(count));
        self.entries = EntryTable::new(version, frames, statuses);
        let entries = usize::try_from(self.entries.entries()).unwrap_or(0);
        let stripes = entries.div_ceil(STRIPE).max(self.active.len());
        self.active.resize_with(stripes, Mutex::default);
    }

    /// Grows the table to `count` frames if it has fewer.
    pub(super) fn grow(&mut self, count: usize) -> Result<(), Refusal> {
        if count > self.max_frames {
            return Err(Refusal::General);
        }
        if count > self.entries.frames().len() {
            self.set_frames(self.entries.version(), count);
        }
        Ok(())
    }

    /// The entries' records, none of them locked.
    pub(super) fn records(&self) -> Records<'_> {
        Records {
            table: self,
            locked: None,
        }
    }

    pub(super) fn header(&self, reference: GrantRef) -> Option<Header> {
        let word = self.entries.header(reference)?;
        Some(Header::from_word(word.load(Ordering::Acquire)))
    }

    /// Checks that the entry allows this, if that is not known from `active`, and marks it as used.
    /// The header that was agreed upon: the rest of the entry is read after this.
    pub(super) fn claim(
        &self,
        reference: GrantRef,
        active: &Active,
        user: DomId,
        access: Access,
        purpose: Use,
    ) -> Result<Header, Refusal> {
        let first_use = active.pin.is_free();
        let allows = |header: Header| {
            let kind = header.flags & EntryFlags::TYPE;
            let fits = match purpose {
                Use::Map => {
                    kind == EntryFlags::PERMIT_ACCESS
                        && !header.flags.contains(EntryFlags::SUB_PAGE)
                }
                Use::Copy => {
                    kind == EntryFlags::PERMIT_ACCESS
                        || kind == EntryFlags::TRANSITIVE && self.entries.version() == Version::V2
                }
            };
            let writable =
                access == Access::ReadOnly || !header.flags.contains(EntryFlags::READONLY);
            writable && (!first_use || fits && header.domain == user)
        };
        match self.entries.version() {
            Version::V1 => self.claim_v1(reference, access, allows),
            Version::V2 => self.claim_v2(reference, active.pin, access, allows),
        }
    }

    fn claim_v1(
        &self,
        reference: GrantRef,
        access: Access,
        allows: impl Fn(Header) -> bool,
    ) -> Result<Header, Refusal> {
        let word = self.entries.header(reference).ok_or(Refusal::BadGrantRef)?;
        let mut seen = word.load(Ordering::Relaxed);
        for _ in 0..ATTEMPTS {
            let header = Header::from_word(seen);
            if !allows(header) {
                return Err(Refusal::General);
            }
            let flags = header.flags | marks(access);
            let new = Header { flags, ..header }.word();
            match word.compare_exchange(seen, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(header),
                Err(now) => seen = now,
            }
        }
        Err(Refusal::General)
    }

    fn claim_v2(
        &self,
        reference: GrantRef,
        pin: Pin,
        access: Access,
        allows: impl Fn(Header) -> bool,
    ) -> Result<Header, Refusal> {
        let word = self.entries.header(reference).ok_or(Refusal::BadGrantRef)?;
        let status = self.entries.status(reference).ok_or(Refusal::BadGrantRef)?;
        if !allows(Header::from_word(word.load(Ordering::Acquire))) {
            return Err(Refusal::General);
        }
        let header = Header::from_word(statuses::mark(word, status, marks(access).bits()));
        if !allows(header) {
            self.unmark(reference, pin, access);
            return Err(Refusal::General);
        }
        Ok(header)
    }

    /// Clears the marks that `pin`, which is what remains, does not justify.
    pub(super) fn unmark(&self, reference: GrantRef, pin: Pin, access: Access) {
        let mut gone = EntryFlags::empty();
        if access == Access::ReadWrite && !pin.is_written() {
            gone |= EntryFlags::WRITING;
        }
        if pin.is_free() {
            gone |= EntryFlags::READING;
        }
        if gone.is_empty() {
            return;
        }
        match self.entries.version() {
            Version::V1 => {
                if let Some(word) = self.entries.header(reference) {
                    word.fetch_and(!u32::from(gone.bits()), Ordering::Release);
                }
            }
            Version::V2 => {
                if let Some(status) = self.entries.status(reference) {
                    statuses::unmark(status, gone.bits());
                }
            }
        }
    }

    /// Ends a use: the counts, the marks, and the frame after the last.
    pub(super) fn release(
        &self,
        reference: GrantRef,
        active: &mut Active,
        one: Pin,
        access: Access,
    ) {
        active.pin.sub(one);
        self.unmark(reference, active.pin, access);
        if active.pin.is_free() {
            active.frame = None;
        }
    }

    /// Commits an entry to a frame that `giver` gives.
    pub(super) fn commit_transfer(&self, reference: GrantRef, giver: DomId) -> Result<(), Refusal> {
        let word = self.entries.header(reference).ok_or(Refusal::General)?;
        let mut seen = word.load(Ordering::Relaxed);
        for _ in 0..ATTEMPTS {
            let header = Header::from_word(seen);
            if header.flags != EntryFlags::ACCEPT_TRANSFER || header.domain != giver {
                return Err(Refusal::General);
            }
            let flags = header.flags | EntryFlags::TRANSFER_COMMITTED;
            let new = Header { flags, ..header }.word();
            match word.compare_exchange(seen, new, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return Ok(()),
                Err(now) => seen = now,
            }
        }
        Err(Refusal::General)
    }

    /// Tells the guest that the frame has come.
    pub(super) fn complete_transfer(&self, reference: GrantRef) {
        if let Some(word) = self.entries.header(reference) {
            let completed = EntryFlags::TRANSFER_COMPLETED.bits();
            word.fetch_or(completed.into(), Ordering::Release);
        }
    }

    /// How many entries are in use, from `first` on.
    pub(super) fn pinned(&self, first: u32) -> usize {
        let mut records = self.records();
        (first..self.entries.entries())
            .filter(|&reference| {
                let active = records.get(GrantRef(reference));
                active.is_some_and(|active| !active.pin.is_free())
            })
            .count()
    }

    /// Changes the version. The reserved entries stay, the others become invalid.
    pub(super) fn set_version(&mut self, version: Version) -> Result<(), Errno> {
        if version == self.entries.version() {
            return Ok(());
        }
        if self.pinned(RESERVED_ENTRIES) != 0 {
            return Err(Errno::Busy);
        }
        let reserved = self.reserved(version)?;
        if version == Version::V1 && !self.entries.statuses().iter().all(Frame::is_sole) {
            return Err(Errno::Busy);
        }
        self.entries.frames().iter().for_each(Frame::clear);
        self.set_frames(version, self.entries.frames().len());
        for (reference, header, frame) in reserved {
            self.restore(reference, header, frame);
        }
        Ok(())
    }

    /// The reserved entries that grant a frame, with the marks in the headers.
    fn reserved(&self, version: Version) -> Result<Vec<(GrantRef, Header, u64)>, Errno> {
        let mut reserved = Vec::new();
        for reference in (0..RESERVED_ENTRIES).map(GrantRef) {
            let (Some(mut header), Some(frame)) =
                (self.header(reference), self.entries.frame(reference))
            else {
                continue;
            };
            let kind = header.flags & EntryFlags::TYPE;
            let permits = kind == EntryFlags::PERMIT_ACCESS;
            let fits = permits && u32::try_from(frame).is_ok() || kind.is_empty();
            if version == Version::V1 && (kind == EntryFlags::TRANSITIVE || permits && !fits) {
                return Err(Errno::Range);
            }
            if let Some(status) = self.entries.status(reference) {
                let used = EntryFlags::from_bits_retain(status.load(Ordering::Relaxed));
                header.flags |= used & EntryFlags::IN_USE;
            }
            if permits {
                reserved.push((reference, header, frame));
            }
        }
        Ok(reserved)
    }

    fn restore(&self, reference: GrantRef, mut header: Header, frame: u64) {
        // It fits: `reserved` checked it.
        let _fits = self.entries.set_frame(reference, frame);
        if let Some(status) = self.entries.status(reference) {
            status.store(
                (header.flags & EntryFlags::IN_USE).bits(),
                Ordering::Relaxed,
            );
            header.flags -= EntryFlags::IN_USE;
        }
        if let Some(word) = self.entries.header(reference) {
            word.store(header.word(), Ordering::Release);
        }
    }

    /// Swaps two entries that are not in use.
    pub(super) fn swap(&mut self, a: GrantRef, b: GrantRef) -> Result<(), Refusal> {
        let mut records = self.records();
        for reference in [a, b] {
            let active = records.get(reference).ok_or(Refusal::BadGrantRef)?;
            if a != b && !active.pin.is_free() {
                return Err(Refusal::TryAgain);
            }
        }
        self.entries.swap(a, b);
        Ok(())
    }
}

/// The records of a table's entries, of which one stripe at a time is locked.
pub(super) struct Records<'t> {
    table: &'t Table,
    locked: Option<(usize, MutexGuard<'t, Stripe>)>,
}

impl Records<'_> {
    /// An entry's record, which stays locked until another stripe's is asked for; none for a reference beyond the table.
    pub(super) fn get(&mut self, reference: GrantRef) -> Option<&mut Active> {
        if reference.0 >= self.table.entries.entries() {
            return None;
        }
        let index = usize::try_from(reference.0).ok()?;
        let (stripe, within) = (index / STRIPE, index % STRIPE);
        if self
            .locked
            .as_ref()
            .is_none_or(|(locked, _)| *locked != stripe)
        {
            // Never two.
            self.locked = None;
            let mutex = self.table.active.get(stripe)?;
            let guard = mutex.lock().unwrap_or_else(PoisonError::into_inner);
            self.locked = Some((stripe, guard));
        }
        self.locked.as_mut()?.1.get_mut(within)
    }
}

fn marks(access: Access) -> EntryFlags {
    match access {
        Access::ReadOnly => EntryFlags::READING,
        Access::ReadWrite => EntryFlags::IN_USE,
    }
}
