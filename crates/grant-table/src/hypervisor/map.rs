//! Mapping and unmapping granted frames.

use std::sync::Arc;

use super::active::{Active, Part, Pin};
use super::maptrack::{Mapping, Shard};
use super::table::{Records, Table, Use};
use super::{Caller, Domain, Frames, Hypervisor};
use crate::guest::Access;
use crate::spec::DomId;
use crate::spec::grant::{
    GrantRef, MapFlags, MapGrantRef, Refusal, UnmapAndReplace, UnmapGrantRef,
};

/// Operations between which no other virtual CPU waits, and which share a flush.
pub const BATCH: usize = 32;

fn access(flags: MapFlags) -> Access {
    if flags.contains(MapFlags::READONLY) {
        Access::ReadOnly
    } else {
        Access::ReadWrite
    }
}

/// A domain that granted, with what a batch has locked of it.
struct Granter<'g> {
    domain: &'g Domain,
    table: &'g Table,
    frames: Box<dyn Frames + 'g>,
    records: Records<'g>,
}

impl<'g> Granter<'g> {
    fn new(domain: &'g Domain, table: &'g Table) -> Self {
        Self {
            domain,
            table,
            frames: domain.memory.frames(),
            records: table.records(),
        }
    }
}

/// A mapping, or half of one, that is taken away and whose use ends after the flush.
struct Ended {
    domain: DomId,
    reference: GrantRef,
    /// Which halves, and [`MapFlags::READONLY`].
    flags: MapFlags,
}

/// What is to be unmapped.
struct Unmap {
    handle: u32,
    host_address: u64,
    device_address: u64,
    replacement: u64,
}

impl Caller<'_> {
    /// Maps grants.
    pub fn map(&self, operations: &mut [MapGrantRef]) {
        for batch in operations.chunks_mut(BATCH) {
            for run in batch.chunk_by_mut(|a, b| a.domain == b.domain) {
                self.map_run(run);
            }
        }
    }

    /// Maps grants of one domain.
    fn map_run(&self, run: &mut [MapGrantRef]) {
        let granter = run.first().and_then(|op| self.hypervisor.find(op.domain));
        let shard = self.domain.maptrack.lock(self.shard);
        let (Some(granter), Some(mut shard)) = (granter, shard) else {
            for op in run {
                let refusal = self.check_flags(op.flags).err();
                op.status = refusal.unwrap_or(Refusal::BadDomain) as i16;
            }
            return;
        };
        let mut full = Vec::new();
        let table = granter.table();
        let mut locked = Granter::new(&granter, &table);
        for op in &mut *run {
            let result = self.map_one(&mut locked, self.shard, &mut shard, op);
            op.status = Refusal::status(result);
            if result == Err(Refusal::NoDeviceSpace) {
                full.push(op);
            }
        }
        drop(locked);
        drop(table);
        drop(shard);
        for op in full {
            self.map_elsewhere(&granter, op);
        }
    }

    /// Maps a grant with a handle of another virtual CPU's shard.
    #[cold]
    fn map_elsewhere(&self, granter: &Domain, op: &mut MapGrantRef) {
        for number in 0..self.domain.maptrack.shards() {
            let Some(mut shard) = self.domain.maptrack.lock(number) else {
                return;
            };
            let table = granter.table();
            let mut locked = Granter::new(granter, &table);
            let result = self.map_one(&mut locked, number, &mut shard, op);
            op.status = Refusal::status(result);
            if result != Err(Refusal::NoDeviceSpace) {
                return;
            }
        }
    }

    fn check_flags(&self, flags: u32) -> Result<MapFlags, Refusal> {
        let flags = MapFlags::from_bits_retain(flags);
        if !flags.intersects(MapFlags::HOST | MapFlags::DEVICE) {
            return Err(Refusal::BadGrantRef);
        }
        let device = flags.contains(MapFlags::DEVICE) && !self.domain.config.device_mappings;
        if device || flags.intersects(MapFlags::APPLICATION | MapFlags::CONTAINS_PTE) {
            return Err(Refusal::General);
        }
        Ok(flags)
    }

    fn map_one(
        &self,
        granter: &mut Granter<'_>,
        number: usize,
        shard: &mut Shard,
        op: &mut MapGrantRef,
    ) -> Result<(), Refusal> {
        let flags = self.check_flags(op.flags)?;
        let handle = self
            .domain
            .maptrack
            .reserve(number, shard)
            .ok_or(Refusal::NoDeviceSpace)?;
        let table = granter.table;
        let active = self.use_for_mapping(granter, op.reference, flags)?;
        let frame = active.frame.as_ref().ok_or(Refusal::General)?;
        let mapping = Mapping {
            domain: op.domain,
            reference: op.reference,
            flags,
            frame: frame.number(),
            host_address: op.host_address,
        };
        op.device_address = frame.address();
        if flags.contains(MapFlags::HOST) {
            let frame = frame.clone();
            if let Err(refusal) = self
                .domain
                .memory
                .map(op.host_address, frame, access(flags))
            {
                table.release(op.reference, active, Pin::one(flags), access(flags));
                return Err(refusal);
            }
        }
        self.domain.maptrack.set(shard, handle, mapping);
        op.handle = handle;
        Ok(())
    }

    /// Counts a use by a mapping, after the checks.
    fn use_for_mapping<'g>(
        &self,
        granter: &'g mut Granter<'_>,
        reference: GrantRef,
        flags: MapFlags,
    ) -> Result<&'g mut Active, Refusal> {
        let (access, user) = (access(flags), self.domain.id);
        let table = granter.table;
        let active = granter.records.get(reference);
        let active = active.ok_or(Refusal::BadGrantRef)?;
        let pinned = !active.pin.is_free();
        if granter.domain.is_dying()
            || self.domain.is_dying()
            || pinned && (active.user != user || active.pin.is_full() || active.part.copy_only)
        {
            return Err(Refusal::General);
        }
        if active.must_check(access) {
            table.claim(reference, active, user, access, Use::Map)?;
        }
        if !pinned {
            let number = table.entries().frame(reference);
            let frame = number.and_then(|number| granter.frames.frame(number));
            if let Some((frame, access)) = frame {
                *active = Active::begin(user, Part::PAGE, (frame.clone(), access));
            }
        }
        if active.frame(access).is_none() {
            table.release(reference, active, Pin::default(), access);
            return Err(Refusal::BadPage);
        }
        active.pin.add(Pin::one(flags));
        Ok(active)
    }

    /// Unmaps grants. When it returns, nobody can reach the frames through these mappings.
    pub fn unmap(&self, operations: &mut [UnmapGrantRef]) {
        self.unmap_all(
            operations,
            |op| Unmap {
                handle: op.handle,
                host_address: op.host_address,
                device_address: op.device_address,
                replacement: 0,
            },
            |op, status| op.status = status,
        );
    }

    /// Unmaps grants, each of which another mapping of the caller's replaces.
    pub fn unmap_and_replace(&self, operations: &mut [UnmapAndReplace]) {
        self.unmap_all(
            operations,
            |op| Unmap {
                handle: op.handle,
                host_address: op.host_address,
                device_address: 0,
                replacement: op.new_address,
            },
            |op, status| op.status = status,
        );
    }

    fn unmap_all<T>(
        &self,
        operations: &mut [T],
        read: impl Fn(&T) -> Unmap,
        answer: impl Fn(&mut T, i16),
    ) {
        let maptrack = &self.domain.maptrack;
        for batch in operations.chunks_mut(BATCH) {
            let mut ended = Vec::with_capacity(BATCH);
            let shard_of = |op: &T| maptrack.shard_of(read(op).handle);
            for run in batch.chunk_by_mut(|a, b| shard_of(a) == shard_of(b)) {
                let Some(mut shard) = run.first().and_then(|op| maptrack.lock(shard_of(op))) else {
                    run.iter_mut()
                        .for_each(|op| answer(op, Refusal::BadHandle as i16));
                    continue;
                };
                for op in run {
                    let result = self.unmap_one(&mut shard, &read(op));
                    answer(
                        op,
                        Refusal::status(result.as_ref().map(drop).map_err(|&r| r)),
                    );
                    ended.extend(result.ok().flatten());
                }
            }
            self.complete(&ended);
        }
    }

    /// Takes a mapping away; its use ends when the batch is flushed.
    fn unmap_one(&self, shard: &mut Shard, op: &Unmap) -> Result<Option<Ended>, Refusal> {
        let maptrack = &self.domain.maptrack;
        let mapping = maptrack.get(shard, op.handle).ok_or(Refusal::BadHandle)?;
        if op.device_address != 0 && op.device_address != mapping.frame.saturating_mul(4096) {
            return Err(Refusal::General);
        }
        let mut gone = MapFlags::empty();
        if op.host_address != 0 && mapping.flags.contains(MapFlags::HOST) {
            if op.host_address != mapping.host_address {
                return Err(Refusal::General);
            }
            let memory = &self.domain.memory;
            memory.unmap(op.host_address, mapping.frame, op.replacement)?;
            gone |= MapFlags::HOST;
        }
        if op.device_address != 0 {
            gone |= mapping.flags & MapFlags::DEVICE;
        }
        if gone.is_empty() {
            return Ok(None);
        }
        mapping.flags -= gone;
        let ended = Ended {
            domain: mapping.domain,
            reference: mapping.reference,
            flags: gone | mapping.flags & MapFlags::READONLY,
        };
        if !mapping.flags.intersects(MapFlags::HOST | MapFlags::DEVICE) {
            maptrack.remove(shard, op.handle);
        }
        Ok(Some(ended))
    }

    /// Flushes, then ends the uses.
    fn complete(&self, ended: &[Ended]) {
        self.hypervisor.complete(&self.domain, ended);
    }
}

impl Hypervisor {
    fn complete(&self, domain: &Domain, ended: &[Ended]) {
        if !ended.is_empty() {
            domain.memory.flush();
        }
        for run in ended.chunk_by(|a, b| a.domain == b.domain) {
            // A domain is there as long as its entries are in use.
            let Some(granter) = run.first().and_then(|one| self.find(one.domain)) else {
                continue;
            };
            let table = granter.table();
            let mut records = table.records();
            for one in run {
                if let Some(active) = records.get(one.reference) {
                    let pin = Pin::one(one.flags);
                    table.release(one.reference, active, pin, access(one.flags));
                }
            }
        }
    }

    /// Ends mappings of a domain that is being destroyed.
    pub(super) fn end_mappings(&self, domain: &Arc<Domain>, mappings: Vec<(u32, Mapping)>) {
        let mut ended = Vec::with_capacity(mappings.len());
        for (handle, _) in mappings {
            let Some(mut shard) = domain.maptrack.lock(domain.maptrack.shard_of(handle)) else {
                continue;
            };
            // Another thread may have ended it since it was listed.
            let Some(mapping) = domain.maptrack.get(&mut shard, handle).copied() else {
                continue;
            };
            if mapping.flags.contains(MapFlags::HOST) {
                // Where this fails the domain's memory does not have the frame any more.
                let _unmapped = domain.memory.unmap(mapping.host_address, mapping.frame, 0);
            }
            domain.maptrack.remove(&mut shard, handle);
            ended.push(Ended {
                domain: mapping.domain,
                reference: mapping.reference,
                flags: mapping.flags,
            });
        }
        self.complete(domain, &ended);
    }
}
