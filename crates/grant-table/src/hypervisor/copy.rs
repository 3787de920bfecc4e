//! Copying between frames, straight.

use std::sync::{Arc, RwLockReadGuard, TryLockError};

use super::active::{Active, Part, Pin};
use super::table::{Records, Table, Use};
use super::{Caller, Domain, Frames};
use crate::frame::Frame;
use crate::guest::Access;
use crate::spec::grant::{Copy, CopyFlags, CopySide, EntryFlags, GrantRef, MapFlags, Refusal};
use crate::spec::{DomId, PAGE_SIZE};
use crate::table::{Transitive, Version};

/// A grant that is to be copied from or to.
#[derive(Clone, Copy)]
struct Wanted {
    reference: GrantRef,
    user: DomId,
    access: Access,
}

impl Wanted {
    fn pin(self) -> Pin {
        Pin::one(match self.access {
            Access::ReadOnly => MapFlags::HOST | MapFlags::READONLY,
            Access::ReadWrite => MapFlags::HOST,
        })
    }
}

/// What is locked from one copy to the next between a grant of another domain and the caller's own frames.
struct Locked<'a> {
    theirs: Box<dyn Frames + 'a>,
    own: Box<dyn Frames + 'a>,
    records: Records<'a>,
}

/// A domain and its table, locked.
#[derive(Clone, Copy)]
struct Granter<'a> {
    domain: &'a Domain,
    table: &'a Table,
}

impl Caller<'_> {
    /// Copies.
    pub fn copy(&self, operations: &mut [Copy]) {
        let same = |a: &Copy, b: &Copy| {
            (a.source.domain, a.dest.domain, a.flags) == (b.source.domain, b.dest.domain, b.flags)
        };
        for batch in operations.chunks_mut(super::BATCH) {
            for run in batch.chunk_by_mut(same) {
                self.copy_run(run);
            }
        }
    }

    /// Copies between the same two domains.
    fn copy_run(&self, run: &mut [Copy]) {
        let Some(&Copy {
            source,
            dest,
            flags,
            ..
        }) = run.first()
        else {
            return;
        };
        let flags = CopyFlags::from_bits_retain(flags);
        let source = self.side(&source, flags.contains(CopyFlags::SOURCE_REF));
        let dest = self.side(&dest, flags.contains(CopyFlags::DEST_REF));
        let (source, dest) = match (source, dest) {
            (Ok(source), Ok(dest)) => (source, dest),
            (Err(refusal), _) | (_, Err(refusal)) => {
                for op in run {
                    op.status = if op.length == 0 { 0 } else { refusal as i16 };
                }
                return;
            }
        };
        let (source_table, dest_table) = lock(source.as_deref(), dest.as_deref());
        let granter = |domain, table| Some(Granter { domain, table });
        let source = source.as_deref().zip(source_table.as_deref());
        let source = source.and_then(|(domain, table)| granter(domain, table));
        let dest_table = dest_table.as_deref().or(source_table.as_deref());
        let dest = dest.as_deref().zip(dest_table);
        let dest = dest.and_then(|(domain, table)| granter(domain, table));
        let with_own = match (source, dest) {
            (Some(granter), None) => Some((granter, Access::ReadOnly)),
            (None, Some(granter)) => Some((granter, Access::ReadWrite)),
            _ => None,
        };
        match with_own.filter(|(granter, _)| granter.domain.id != self.domain.id) {
            Some((granter, access)) => self.copy_with_own(granter, access, run),
            None => {
                for op in run {
                    op.status = Refusal::status(self.copy_one(source, dest, op));
                }
            }
        }
    }

    /// Copies from or to grants of another domain, to or from the caller's own frames. An entry is locked, and not counted, while it is copied.
    fn copy_with_own(&self, granter: Granter<'_>, access: Access, run: &mut [Copy]) {
        let mut locked = None;
        for op in run {
            let (grant, source, dest) = match access {
                Access::ReadOnly => (&op.source, Some(granter), None),
                Access::ReadWrite => (&op.dest, None, Some(granter)),
            };
            let held = locked.get_or_insert_with(|| self.lock_with_own(granter));
            let result = match granter.transitive(&mut held.records, grant.reference()) {
                _ if op.length == 0 => Ok(()),
                Ok(None) => self.copy_locked(granter, access, held, op),
                // Locks others, in another order.
                _ => {
                    locked = None;
                    self.copy_one(source, dest, op)
                }
            };
            op.status = Refusal::status(result);
        }
    }

    fn lock_with_own<'a>(&'a self, granter: Granter<'a>) -> Locked<'a> {
        let lend = |domain: &'a Domain| domain.memory.frames();
        let (theirs, own) = if granter.domain.id < self.domain.id {
            let theirs = lend(granter.domain);
            (theirs, lend(&self.domain))
        } else {
            let own = lend(&self.domain);
            (lend(granter.domain), own)
        };
        Locked {
            theirs,
            own,
            records: granter.table.records(),
        }
    }

    /// One copy between a grant that is not transitive and a frame of the caller's own.
    fn copy_locked(
        &self,
        granter: Granter<'_>,
        access: Access,
        locked: &mut Locked<'_>,
        op: &Copy,
    ) -> Result<(), Refusal> {
        let Locked {
            theirs,
            own,
            records,
        } = locked;
        let wanted = |side: &CopySide| Wanted {
            reference: side.reference(),
            user: self.domain.id,
            access,
        };
        match access {
            Access::ReadOnly => {
                granter.with_locked(&mut **theirs, records, wanted(&op.source), |from, part| {
                    let to = writable(own.frame(op.dest.page))?;
                    copy_bytes(op, (from, part), (to, Part::PAGE))
                })
            }
            Access::ReadWrite => {
                let (from, _) = own.frame(op.source.page).ok_or(Refusal::BadPage)?;
                granter.with_locked(&mut **theirs, records, wanted(&op.dest), |to, part| {
                    copy_bytes(op, (from, Part::PAGE), (to, part))
                })
            }
        }
    }

    /// The domain whose grant a side names; none for a frame of the caller's.
    fn side(&self, side: &CopySide, is_ref: bool) -> Result<Option<Arc<Domain>>, Refusal> {
        if !is_ref {
            let own = side.domain == DomId::SELF;
            return own.then_some(None).ok_or(Refusal::PermissionDenied);
        }
        self.resolve(side.domain)
            .map(Some)
            .ok_or(Refusal::BadDomain)
    }

    fn copy_one(
        &self,
        source: Option<Granter<'_>>,
        dest: Option<Granter<'_>>,
        op: &Copy,
    ) -> Result<(), Refusal> {
        if op.length == 0 {
            return Ok(());
        }
        self.with_side(source, &op.source, Access::ReadOnly, |from, readable| {
            self.with_side(dest, &op.dest, Access::ReadWrite, |to, writable| {
                copy_bytes(op, (from, readable), (to, writable))
            })
        })
    }

    /// Calls `then` with the frame of a side and the part of it that may be used, while that use is counted.
    fn with_side(
        &self,
        granter: Option<Granter<'_>>,
        side: &CopySide,
        access: Access,
        then: impl FnOnce(&Frame, Part) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let Some(granter) = granter else {
            let frame = self.domain.memory.frame(side.page);
            let frame = match access {
                Access::ReadOnly => frame.map(|(frame, _)| frame),
                Access::ReadWrite => writable(frame).ok(),
            };
            return then(&frame.ok_or(Refusal::BadPage)?, Part::PAGE);
        };
        let wanted = Wanted {
            reference: side.reference(),
            user: self.domain.id,
            access,
        };
        let passed_on = granter.transitive(&mut granter.table.records(), wanted.reference)?;
        match passed_on {
            Some(to) => self.with_transitive(granter, wanted, to, then),
            None => granter.with_own(wanted, then),
        }
    }

    /// As `with_side`, for a grant that passes another on.
    fn with_transitive(
        &self,
        granter: Granter<'_>,
        wanted: Wanted,
        to: Transitive,
        then: impl FnOnce(&Frame, Part) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let first = (to.domain != granter.domain.id).then(|| self.hypervisor.find(to.domain));
        let first = first.flatten().ok_or(Refusal::General)?;
        // Its place in the order of tables is unknown.
        let table = match first.table.try_read() {
            Ok(table) => table,
            Err(TryLockError::Poisoned(table)) => table.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(Refusal::TryAgain),
        };
        let owner = Granter {
            domain: &first,
            table: &table,
        };
        let inner = Wanted {
            reference: to.reference,
            user: granter.domain.id,
            access: wanted.access,
        };
        owner.with_own(inner, |frame, part| {
            let part = Part {
                copy_only: true,
                ..part
            };
            granter.begin_passing(wanted, to, frame, part)?;
            let result = then(frame, part);
            granter.end(wanted);
            result
        })
    }
}

impl Granter<'_> {
    /// What the entry passes on, if it does. An entry in use stays what it was when its use began.
    fn transitive(
        &self,
        records: &mut Records<'_>,
        reference: GrantRef,
    ) -> Result<Option<Transitive>, Refusal> {
        if self.table.entries().version() == Version::V1 {
            return Ok(None);
        }
        let active = records.get(reference).ok_or(Refusal::BadGrantRef)?;
        let header = self.table.header(reference).ok_or(Refusal::BadGrantRef)?;
        let to = self.table.entries().transitive(reference);
        let to = to.filter(|_| header.flags & EntryFlags::TYPE == EntryFlags::TRANSITIVE);
        let passes = to.map(|to| (to.domain, to.reference));
        if !active.pin.is_free() && active.passes != passes {
            return Err(Refusal::General);
        }
        Ok(to)
    }

    /// Calls `then` with a frame of the domain's own.
    fn with_own(
        &self,
        wanted: Wanted,
        then: impl FnOnce(&Frame, Part) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let (frame, part) = self.begin(wanted)?;
        let result = then(&frame, part);
        drop(frame);
        self.end(wanted);
        result
    }

    /// Calls `then` with a frame of the domain's own, whose entry is locked meanwhile.
    fn with_locked(
        &self,
        frames: &mut dyn Frames,
        records: &mut Records<'_>,
        wanted: Wanted,
        then: impl FnOnce(&Frame, Part) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        let Wanted {
            reference, access, ..
        } = wanted;
        let active = records.get(reference).ok_or(Refusal::BadGrantRef)?;
        let flags = self.agree(active, wanted)?;
        let looked_up = match flags.filter(|_| active.pin.is_free()) {
            Some(flags) => self.look_up(frames, reference, flags),
            None => {
                let frame = active.frame(access).ok_or(Refusal::BadPage);
                frame.map(|frame| ((frame, access), active.part))
            }
        };
        let result = looked_up.and_then(|((frame, allowed), part)| {
            if access == Access::ReadWrite && allowed == Access::ReadOnly {
                return Err(Refusal::BadPage);
            }
            then(frame, part)
        });
        if flags.is_some() {
            self.table.unmark(reference, active.pin, access);
        }
        result
    }

    /// Checks an entry of the domain's own, and marks it as used where it is not; its flags if it did.
    fn agree(&self, active: &Active, wanted: Wanted) -> Result<Option<EntryFlags>, Refusal> {
        self.check(active, wanted)?;
        if !active.pin.is_free() && active.passes.is_some() {
            return Err(Refusal::General);
        }
        if !active.must_check(wanted.access) {
            return Ok(None);
        }
        let Wanted {
            reference,
            user,
            access,
        } = wanted;
        let table = self.table;
        let header = table.claim(reference, active, user, access, Use::Copy)?;
        Ok(Some(header.flags))
    }

    /// Checks an entry that is in use, or that it can be.
    fn check(&self, active: &Active, wanted: Wanted) -> Result<(), Refusal> {
        let other = active.user != wanted.user || active.pin.is_full();
        if self.domain.is_dying() {
            return Err(Refusal::BadDomain);
        }
        if !active.pin.is_free() && other {
            return Err(Refusal::General);
        }
        Ok(())
    }

    /// Begins a use of a frame of the domain's own.
    fn begin(&self, wanted: Wanted) -> Result<(Frame, Part), Refusal> {
        let Wanted {
            reference,
            user,
            access,
        } = wanted;
        let mut frames = self.domain.memory.frames();
        let mut records = self.table.records();
        let active = records.get(reference).ok_or(Refusal::BadGrantRef)?;
        if let Some(flags) = self.agree(active, wanted)?
            && active.pin.is_free()
        {
            match self.look_up(&mut *frames, reference, flags) {
                Ok(((frame, access), part)) => {
                    *active = Active::begin(user, part, (frame.clone(), access));
                }
                Err(refusal) => {
                    self.table.unmark(reference, active.pin, access);
                    return Err(refusal);
                }
            }
        }
        let Some(frame) = active.frame(access).cloned() else {
            self.table
                .release(reference, active, Pin::default(), access);
            return Err(Refusal::BadPage);
        };
        active.pin.add(wanted.pin());
        Ok((frame, active.part))
    }

    /// The frame of an entry whose use begins.
    fn look_up<'f>(
        &self,
        frames: &'f mut dyn Frames,
        reference: GrantRef,
        flags: EntryFlags,
    ) -> Result<((&'f Frame, Access), Part), Refusal> {
        if flags & EntryFlags::TYPE != EntryFlags::PERMIT_ACCESS {
            return Err(Refusal::General);
        }
        let entries = self.table.entries();
        let part = match entries.range(reference) {
            Some((first, length)) if flags.contains(EntryFlags::SUB_PAGE) => Part {
                first,
                length,
                copy_only: true,
            },
            _ => Part::PAGE,
        };
        let number = entries.frame(reference).ok_or(Refusal::General)?;
        Ok((frames.frame(number).ok_or(Refusal::BadPage)?, part))
    }

    /// Begins a use of an entry that passes on a frame, of which a use has begun.
    fn begin_passing(
        &self,
        wanted: Wanted,
        to: Transitive,
        frame: &Frame,
        part: Part,
    ) -> Result<(), Refusal> {
        let Wanted {
            reference,
            user,
            access,
        } = wanted;
        let mut records = self.table.records();
        let active = records.get(reference).ok_or(Refusal::BadGrantRef)?;
        self.check(active, wanted)?;
        let passes = Some((to.domain, to.reference));
        if !active.pin.is_free() {
            let same = active.frame.as_ref().is_some_and(|own| own.is(frame));
            if active.passes != passes || active.part != part || !same {
                return Err(Refusal::TryAgain);
            }
        }
        if active.must_check(access) {
            let header = self
                .table
                .claim(reference, active, user, access, Use::Copy)?;
            let transitive = header.flags & EntryFlags::TYPE == EntryFlags::TRANSITIVE;
            if active.pin.is_free()
                && (!transitive || self.table.entries().transitive(reference) != Some(to))
            {
                self.table.unmark(reference, active.pin, access);
                return Err(Refusal::TryAgain);
            }
        }
        if active.pin.is_free() {
            // Whether it may be written the inner use has checked.
            *active = Active {
                passes,
                ..Active::begin(user, part, (frame.clone(), Access::ReadWrite))
            };
        }
        active.pin.add(wanted.pin());
        Ok(())
    }

    /// Ends a use.
    fn end(&self, wanted: Wanted) {
        if let Some(active) = self.table.records().get(wanted.reference) {
            self.table
                .release(wanted.reference, active, wanted.pin(), wanted.access);
        }
    }
}

/// A frame of the caller's own that is to be written.
fn writable<F>(frame: Option<(F, Access)>) -> Result<F, Refusal> {
    let allowed = frame.filter(|(_, access)| *access == Access::ReadWrite);
    allowed.map(|(frame, _)| frame).ok_or(Refusal::BadPage)
}

/// Copies what `op` says, within the parts that may be used.
fn copy_bytes(
    op: &Copy,
    (from, readable): (&Frame, Part),
    (to, writable): (&Frame, Part),
) -> Result<(), Refusal> {
    let end = |side: &CopySide| usize::from(side.offset) + usize::from(op.length);
    if end(&op.source) > PAGE_SIZE || end(&op.dest) > PAGE_SIZE {
        return Err(Refusal::BadCopyArgument);
    }
    if !readable.contains(op.source.offset, op.length)
        || !writable.contains(op.dest.offset, op.length)
    {
        return Err(Refusal::General);
    }
    let (first, second) = (op.source.offset.into(), op.dest.offset.into());
    let copied = from.copy_to(first, to, second, op.length.into());
    copied.then_some(()).ok_or(Refusal::BadCopyArgument)
}

type Guard<'a> = RwLockReadGuard<'a, Table>;

/// Locks the tables in the order of their domains; the second is none where it is the first.
fn lock<'a>(
    source: Option<&'a Domain>,
    dest: Option<&'a Domain>,
) -> (Option<Guard<'a>>, Option<Guard<'a>>) {
    match (source, dest) {
        (Some(source), Some(dest)) if source.id == dest.id => (Some(source.table()), None),
        (Some(source), Some(dest)) if source.id > dest.id => {
            let dest = dest.table();
            (Some(source.table()), Some(dest))
        }
        (source, dest) => {
            let source = source.map(Domain::table);
            (source, dest.map(Domain::table))
        }
    }
}
