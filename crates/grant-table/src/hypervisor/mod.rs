//! The hypervisor's side of grants: domains that let each other use their frames.
//!
//! Locks are taken in this order: a shard of the caller's mappings, tables in the order of their domains, domains' own frames in that order
//! too, a stripe of entries, whatever [`Memory`] needs to map. A table that is out of order is only tried.

mod active;
mod copy;
mod hypercall;
mod map;
mod maptrack;
mod memory;
mod table;
mod transfer;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub use active::Pin;
pub use hypercall::{Arguments, Fault, Outcome};
pub use map::BATCH;
pub use memory::{Frames, Memory, Pages};

use crate::frame::Frame;
use crate::spec::grant::{CacheFlags, CacheFlush, GrantRef, QuerySize, Refusal};
use crate::spec::{DomId, Errno, PAGE_SIZE};
use crate::table::{EntryTable, Version};
use maptrack::Maptrack;
use table::Table;

/// What a domain may do and have.
#[derive(Clone, Copy, Debug)]
pub struct DomainConfig {
    /// Virtual CPUs.
    pub vcpus: usize,
    /// Frames that its grant table may grow to.
    pub max_grant_frames: usize,
    /// Frames that its mappings may need, at 256 mappings each.
    pub max_maptrack_frames: usize,
    /// The highest version that its table may have.
    pub max_version: Version,
    /// It may map grants for devices. Xen allows that to PV guests only.
    pub device_mappings: bool,
    /// It may ask about other domains.
    pub privileged: bool,
}

impl Default for DomainConfig {
    /// Xen's defaults, for an unprivileged HVM guest with one virtual CPU.
    fn default() -> Self {
        Self {
            vcpus: 1,
            max_grant_frames: 64,
            max_maptrack_frames: 1024,
            max_version: Version::V2,
            device_mappings: false,
            privileged: false,
        }
    }
}

/// Why a domain was not created.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// The identifier is reserved.
    #[error("{0} is no domain's identifier")]
    Reserved(DomId),
    /// There is such a domain, which may be one that is being destroyed.
    #[error("{0} exists")]
    Exists(DomId),
}

/// How far the destruction of a domain has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destruction {
    /// Call again: it has mappings left.
    Unfinished,
    /// Others still use this many of its entries. It is gone when they have let go and this was called again.
    InUse(usize),
    /// It is gone.
    Gone,
}

pub(crate) struct Domain {
    id: DomId,
    config: DomainConfig,
    memory: Box<dyn Memory>,
    table: RwLock<Table>,
    maptrack: Maptrack,
    dying: AtomicBool,
}

impl Domain {
    fn table(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn table_mut(&self) -> RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_dying(&self) -> bool {
        self.dying.load(Ordering::Acquire)
    }
}

/// Domains and what they grant to each other.
#[derive(Default)]
pub struct Hypervisor {
    domains: RwLock<BTreeMap<DomId, Arc<Domain>>>,
}

impl std::fmt::Debug for Hypervisor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let domains = self.domains.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_set().entries(domains.keys()).finish()
    }
}

impl Hypervisor {
    /// No domains.
    pub fn new() -> Self {
        Self::default()
    }

    /// Creates a domain, with a version 1 table of one frame.
    ///
    /// # Errors
    ///
    /// The identifier is reserved or taken.
    pub fn create(
        &self,
        id: DomId,
        config: DomainConfig,
        memory: impl Memory + 'static,
    ) -> Result<(), DomainError> {
        if id >= DomId::FIRST_RESERVED {
            return Err(DomainError::Reserved(id));
        }
        let domain = Domain {
            id,
            config,
            memory: Box::new(memory),
            table: RwLock::new(Table::new(config.max_grant_frames)),
            maptrack: Maptrack::new(config.vcpus, config.max_maptrack_frames),
            dying: AtomicBool::new(false),
        };
        let mut domains = self.domains.write().unwrap_or_else(PoisonError::into_inner);
        if domains.contains_key(&id) {
            return Err(DomainError::Exists(id));
        }
        domains.insert(id, Arc::new(domain));
        Ok(())
    }

    /// Destroys a domain, ending at most `budget` of its mappings. From the first call on nobody can begin to use its frames.
    ///
    /// # Errors
    ///
    /// There is no such domain.
    pub fn destroy(&self, id: DomId, budget: usize) -> Result<Destruction, Errno> {
        let domain = self.find(id).ok_or(Errno::Srch)?;
        domain.dying.store(true, Ordering::Release);
        let mappings = domain.maptrack.used(budget);
        if mappings.len() == budget {
            self.end_mappings(&domain, mappings);
            return Ok(Destruction::Unfinished);
        }
        self.end_mappings(&domain, mappings);
        // Who began before the domain was dying has the table locked.
        let pinned = domain.table_mut().pinned(0);
        if pinned != 0 {
            return Ok(Destruction::InUse(pinned));
        }
        let mut domains = self.domains.write().unwrap_or_else(PoisonError::into_inner);
        domains.remove(&id);
        Ok(Destruction::Gone)
    }

    fn find(&self, id: DomId) -> Option<Arc<Domain>> {
        let domains = self.domains.read().unwrap_or_else(PoisonError::into_inner);
        domains.get(&id).cloned()
    }

    /// The operations that virtual CPU `vcpu` of a domain can ask for; none if there is no such domain or it is being destroyed.
    pub fn caller(&self, id: DomId, vcpu: usize) -> Option<Caller<'_>> {
        let domain = self.find(id).filter(|domain| !domain.is_dying())?;
        let shard = vcpu % domain.maptrack.shards();
        Some(Caller {
            hypervisor: self,
            domain,
            shard,
        })
    }
}

/// A virtual CPU of a domain that asks the hypervisor for something.
///
/// The operations on grants take the arguments of the hypercall and set their statuses. Each is described by its argument in
/// [`spec::grant`](crate::spec::grant).
pub struct Caller<'h> {
    hypervisor: &'h Hypervisor,
    domain: Arc<Domain>,
    /// Of the domain's mappings.
    shard: usize,
}

impl std::fmt::Debug for Caller<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Caller").field(&self.domain.id).finish()
    }
}

impl Caller<'_> {
    /// The domain named `id`, which may be [`DomId::SELF`].
    fn resolve(&self, id: DomId) -> Option<Arc<Domain>> {
        if id == DomId::SELF || id == self.domain.id {
            return Some(Arc::clone(&self.domain));
        }
        self.hypervisor.find(id)
    }

    /// A domain about which the caller may ask.
    fn target(&self, id: DomId) -> Result<Arc<Domain>, Refusal> {
        let target = self.resolve(id).ok_or(Refusal::BadDomain)?;
        if target.id != self.domain.id && !self.domain.config.privileged {
            return Err(Refusal::PermissionDenied);
        }
        Ok(target)
    }

    /// Grows the table of a domain to `frames` frames and lends it.
    ///
    /// # Errors
    ///
    /// The domain is not there or not the caller's business, or the limit is exceeded.
    pub fn setup_table(&self, domain: DomId, frames: u32) -> Result<EntryTable, Refusal> {
        let target = self.target(domain)?;
        let mut table = target.table_mut();
        table.grow(usize::try_from(frames).map_err(|_| Refusal::General)?)?;
        Ok(table.entries().clone())
    }

    /// How many frames the table of a domain has and may have.
    pub fn query_size(&self, query: &mut QuerySize) {
        let result = self.target(query.domain).map(|target| {
            let table = target.table();
            let count = |frames| u32::try_from(frames).unwrap_or(u32::MAX);
            query.frames = count(table.entries().frames().len());
            query.max_frames = count(table.max_frames());
        });
        query.status = Refusal::status(result);
    }

    /// The first `count` frames of the statuses of a domain.
    ///
    /// # Errors
    ///
    /// The domain is not there or not the caller's business, or has fewer.
    pub fn status_frames(&self, domain: DomId, count: u32) -> Result<Vec<Frame>, Refusal> {
        let target = self.target(domain)?;
        let table = target.table();
        let count = usize::try_from(count).map_err(|_| Refusal::General)?;
        let frames = table.entries().statuses().get(..count);
        frames.map(<[Frame]>::to_vec).ok_or(Refusal::General)
    }

    /// Changes the version of the caller's table.
    ///
    /// # Errors
    ///
    /// - [`Errno::Inval`]: there is no such version; [`Errno::NoSys`]: this domain may not have it.
    /// - [`Errno::Busy`]: entries beyond the reserved ones are in use, or someone still holds a frame of the statuses.
    /// - [`Errno::Range`]: version 1 cannot hold a reserved entry.
    pub fn set_version(&self, number: u32) -> Result<(), Errno> {
        let version = Version::from_number(number).ok_or(Errno::Inval)?;
        if number > self.domain.config.max_version.number() {
            return Err(Errno::NoSys);
        }
        self.domain.table_mut().set_version(version)
    }

    /// The version of a domain's table.
    ///
    /// # Errors
    ///
    /// [`Errno::Srch`]: there is no such domain; [`Errno::Perm`]: it is not the caller's business.
    pub fn version(&self, domain: DomId) -> Result<Version, Errno> {
        let target = self.target(domain).map_err(|refusal| match refusal {
            Refusal::PermissionDenied => Errno::Perm,
            _ => Errno::Srch,
        })?;
        let version = target.table().entries().version();
        Ok(version)
    }

    /// Swaps two entries of the caller's table.
    ///
    /// # Errors
    ///
    /// One is not there, or in use.
    pub fn swap_grant_refs(&self, a: GrantRef, b: GrantRef) -> Result<(), Refusal> {
        self.domain.table_mut().swap(a, b)
    }

    /// How an entry of the caller's table is used; none beyond the table.
    pub fn pin(&self, reference: GrantRef) -> Option<Pin> {
        let table = self.domain.table();
        let pin = table.records().get(reference)?.pin;
        Some(pin)
    }

    /// Flushes caches of a frame that the caller has mapped. Caches here are coherent, so there is nothing to do after the checks.
    ///
    /// # Errors
    ///
    /// The range or the operation is invalid, or the caller has not mapped the frame.
    pub fn cache_flush(&self, flush: &CacheFlush) -> Result<(), Errno> {
        let operation = CacheFlags::from_bits_retain(flush.operation);
        let end = usize::from(flush.offset) + usize::from(flush.length);
        let known = CacheFlags::CLEAN | CacheFlags::INVALIDATE | CacheFlags::SOURCE_REF;
        if usize::from(flush.offset) >= PAGE_SIZE || end > PAGE_SIZE || !known.contains(operation) {
            return Err(Errno::Inval);
        }
        if flush.length == 0 || operation.is_empty() {
            return Ok(());
        }
        if operation.contains(CacheFlags::SOURCE_REF) {
            return Err(Errno::OpNotSupp);
        }
        let frame = flush.device_address / 4096;
        let mapped = self.domain.maptrack.any(|mapping| mapping.frame == frame);
        mapped.then_some(()).ok_or(Errno::Perm)
    }
}
