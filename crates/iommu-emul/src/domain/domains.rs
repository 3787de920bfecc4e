use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    ops::RangeInclusive,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
        atomic::{AtomicBool, AtomicU16, Ordering},
    },
};

use pio_mmio_bus::pci::RequesterId;

use super::mappings::{Mapping, Mappings};
use crate::{
    dma::{Access, Cache, DmaView, Draining, Leaf, PhysicalMemory, Translator},
    spec::interrupt::{RANGE_FIRST, RANGE_LAST},
};

/// Granularity of mappings, in bytes.
const PAGE: u64 = 4096;

/// What the domains can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DomainConfig {
    /// Addresses that can be mapped. Whole pages of 4 KiB.
    pub input: RangeInclusive<u64>,
    /// Identifiers that a domain can have.
    pub domains: RangeInclusive<u32>,
    /// Addresses that cannot be mapped, besides the interrupt address range.
    pub reserved: Vec<RangeInclusive<u64>>,
    /// Mappings of all domains together at most: each takes the host some 50 bytes.
    pub max_mappings: usize,
    /// Endpoints that are in no domain reach all of memory at first.
    pub bypass: bool,
}

impl Default for DomainConfig {
    /// 48 bits of address, any domain, 262,144 mappings, bypass.
    fn default() -> Self {
        Self {
            input: 0..=(1 << 48) - 1,
            domains: 0..=u32::MAX,
            reserved: Vec::new(),
            max_mappings: 1 << 18,
            bypass: true,
        }
    }
}

/// Why a request was refused. Nothing changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// There is no such endpoint.
    #[error("no endpoint {0:x?}")]
    NoEndpoint(RequesterId),
    /// There is no such domain.
    #[error("no domain {0}")]
    NoDomain(u32),
    /// A domain cannot have this identifier.
    #[error("{0} is not the identifier of a domain")]
    DomainRange(u32),
    /// A bypass domain has no mappings, and another is no bypass domain.
    #[error("domain {0}: bypass or not is decided when it is created")]
    Bypass(u32),
    /// The endpoint is not in the domain.
    #[error("endpoint {endpoint:x?} is not in domain {domain}")]
    NotAttached {
        /// The endpoint.
        endpoint: RequesterId,
        /// The domain.
        domain: u32,
    },
    /// The range is empty, not whole pages, or not in the input range.
    #[error("{0:#x?} cannot be mapped")]
    Range(RangeInclusive<u64>),
    /// There are no such physical addresses.
    #[error("{bytes:#x} bytes from {physical:#x} on are no physical addresses")]
    Physical {
        /// The first.
        physical: u64,
        /// Length less one.
        bytes: u64,
    },
    /// The range overlaps a reserved one.
    #[error("{0:#x?} is reserved")]
    Reserved(RangeInclusive<u64>),
    /// The range overlaps a mapping.
    #[error("{0:#x?} is mapped already")]
    Mapped(RangeInclusive<u64>),
    /// The range begins or ends within a mapping.
    #[error("{0:#x?} would split a mapping")]
    Split(RangeInclusive<u64>),
    /// There are as many mappings as there can be.
    #[error("{0} mappings are the limit")]
    Full(usize),
}

/// Why an access was blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The endpoint is in no domain.
    Domain,
    /// Nothing is mapped there, or not for this access.
    Mapping,
}

/// An access that was blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Whose it was.
    pub endpoint: RequesterId,
    /// Where.
    pub address: u64,
    /// What it wanted.
    pub access: Access,
    /// Why it was blocked.
    pub kind: FaultKind,
}

/// Whoever serves the driver. Called without a lock, from any thread that does I/O.
pub trait DomainEvents: Send + Sync {
    /// What [`Domains::settled`] denied may be so now.
    fn drained(&self);

    /// An access was blocked.
    fn fault(&self, fault: Fault);
}

/// The domains of a paravirtual IOMMU and its endpoints.
///
/// Translations that hit take no lock; misses share one.
pub struct Domains<M: PhysicalMemory> {
    config: DomainConfig,
    memory: M,
    inner: RwLock<Inner>,
    events: Mutex<Option<Weak<dyn DomainEvents>>>,
    draining: Mutex<Vec<Draining>>,
    /// Somebody waits for guards: whoever drops the last of a generation tells.
    waiting: AtomicBool,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub bypass: bool,
    pub domains: BTreeMap<u32, Domain>,
    /// By endpoint, its domain.
    pub attached: BTreeMap<RequesterId, u32>,
    /// Mappings of all domains.
    pub mapped: usize,
    pub endpoints: Vec<Weak<Endpoint>>,
}

#[derive(Debug, Default)]
pub(super) struct Domain {
    pub bypass: bool,
    pub endpoints: BTreeSet<RequesterId>,
    pub mappings: Mappings,
}

/// An endpoint that a view was made of.
#[derive(Debug)]
pub(super) struct Endpoint {
    requester: AtomicU16,
    cache: Arc<Cache>,
}

impl Endpoint {
    fn requester(&self) -> RequesterId {
        RequesterId(self.requester.load(Ordering::Acquire))
    }
}

impl Inner {
    /// The endpoints that there are views of.
    fn endpoints(&self) -> impl Iterator<Item = Arc<Endpoint>> {
        self.endpoints.iter().filter_map(Weak::upgrade)
    }

    /// Drops what is cached of addresses of these endpoints.
    fn invalidate(&self, covers: impl Fn(RequesterId) -> bool, range: RangeInclusive<u64>) {
        for endpoint in self.endpoints() {
            if covers(endpoint.requester()) {
                endpoint.cache.invalidate(*range.start(), *range.end());
            }
        }
    }

    /// Takes an endpoint out of its domain, which ceases to exist with its last.
    fn detach(&mut self, endpoint: RequesterId) {
        let Some(id) = self.attached.remove(&endpoint) else {
            return;
        };
        if let Some(domain) = self.domains.get_mut(&id) {
            domain.endpoints.remove(&endpoint);
            if domain.endpoints.is_empty() {
                self.mapped -= domain.mappings.len();
                self.domains.remove(&id);
            }
        }
    }

    /// The page of an endpoint's address.
    fn leaf(&self, endpoint: RequesterId, address: u64) -> Result<Leaf, FaultKind> {
        let domain = self
            .attached
            .get(&endpoint)
            .and_then(|domain| self.domains.get(domain));
        match domain {
            Some(domain) if !domain.bypass => domain
                .mappings
                .leaf(address)
                .and_then(|leaf| leaf.clear_of_interrupts(address)),
            None if !self.bypass => return Err(FaultKind::Domain),
            _ => Leaf::bypass(address),
        }
        .ok_or(FaultKind::Mapping)
    }
}

impl<M: PhysicalMemory> Domains<M> {
    /// No domain, and no endpoint yet. `memory` is the guest's.
    pub fn new(config: DomainConfig, memory: M) -> Arc<Self> {
        let inner = Inner {
            bypass: config.bypass,
            ..Inner::default()
        };
        Arc::new(Self {
            config,
            memory,
            inner: RwLock::new(inner),
            events: Mutex::default(),
            draining: Mutex::default(),
            waiting: AtomicBool::new(false),
        })
    }

    /// What the domains can do.
    pub fn config(&self) -> &DomainConfig {
        &self.config
    }

    /// Sets whom to tell of faults and of guards that are gone, instead of whoever was set before.
    pub fn connect(&self, events: Weak<dyn DomainEvents>) {
        *lock(&self.events) = Some(events);
    }

    /// Memory as `requester` sees it. The endpoint exists as long as the view or a clone of it.
    pub fn view(self: &Arc<Self>, requester: RequesterId) -> DmaView<M> {
        let endpoint = Arc::new(Endpoint {
            requester: AtomicU16::new(requester.0),
            cache: Arc::new(Cache::new()),
        });
        let endpoints = &mut self.write().endpoints;
        endpoints.retain(|endpoint| endpoint.strong_count() > 0);
        endpoints.push(Arc::downgrade(&endpoint));
        let cache = Arc::clone(&endpoint.cache);
        let domains = Arc::clone(self);
        DmaView::new(
            self.memory.clone(),
            Arc::new(Port { domains, endpoint }),
            cache,
        )
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is an endpoint.
    pub fn has_endpoint(&self, requester: RequesterId) -> bool {
        self.read()
            .endpoints()
            .any(|endpoint| endpoint.requester() == requester)
    }

    /// Whether endpoints that are in no domain reach all of memory.
    pub fn bypass(&self) -> bool {
        self.read().bypass
    }

    /// Changes what endpoints reach that are in no domain. Takes effect on views that are entered from now on.
    pub fn set_bypass(&self, bypass: bool) {
        let mut inner = self.write();
        inner.bypass = bypass;
        inner.invalidate(
            |endpoint| !inner.attached.contains_key(&endpoint),
            0..=u64::MAX,
        );
    }

    /// Puts an endpoint into a domain, which is created if there is none, after taking it out of the one that it is in. A `bypass`
    /// domain translates every address to itself.
    ///
    /// # Errors
    ///
    /// An endpoint that does not exist, an identifier out of range, a domain of the other kind.
    pub fn attach(&self, id: u32, endpoint: RequesterId, bypass: bool) -> Result<(), DomainError> {
        if !self.has_endpoint(endpoint) {
            return Err(DomainError::NoEndpoint(endpoint));
        }
        if !self.config.domains.contains(&id) {
            return Err(DomainError::DomainRange(id));
        }
        let mut inner = self.write();
        if inner.domains.get(&id).is_some_and(|d| d.bypass != bypass) {
            return Err(DomainError::Bypass(id));
        }
        if inner.attached.get(&endpoint) == Some(&id) {
            return Ok(());
        }
        inner.detach(endpoint);
        let domain = inner.domains.entry(id).or_default();
        domain.bypass = bypass;
        domain.endpoints.insert(endpoint);
        inner.attached.insert(endpoint, id);
        inner.invalidate(|other| other == endpoint, 0..=u64::MAX);
        Ok(())
    }

    /// Takes an endpoint out of a domain, which ceases to exist with its last.
    ///
    /// # Errors
    ///
    /// An endpoint that does not exist or is not in the domain.
    pub fn detach(&self, id: u32, endpoint: RequesterId) -> Result<(), DomainError> {
        let exists = self.has_endpoint(endpoint);
        let mut inner = self.write();
        match inner.attached.get(&endpoint) {
            Some(domain) if *domain == id => {}
            None if !exists => return Err(DomainError::NoEndpoint(endpoint)),
            _ => {
                return Err(DomainError::NotAttached {
                    endpoint,
                    domain: id,
                });
            }
        }
        inner.detach(endpoint);
        inner.invalidate(|other| other == endpoint, 0..=u64::MAX);
        Ok(())
    }

    /// Adds a mapping to a domain.
    ///
    /// # Errors
    ///
    /// No such domain, or a bypass domain; a range that is not whole pages, not in the input range, reserved or mapped; too many
    /// mappings.
    pub fn map(&self, id: u32, mapping: Mapping) -> Result<(), DomainError> {
        let mut inner = self.write();
        let mapped = inner.mapped;
        let domain = domain(&mut inner, id)?;
        self.check(&mapping)?;
        let range = mapping.first..=mapping.last;
        if domain.mappings.overlap(&range) {
            return Err(DomainError::Mapped(range));
        }
        if mapped >= self.config.max_mappings {
            return Err(DomainError::Full(self.config.max_mappings));
        }
        domain.mappings.insert(mapping);
        inner.mapped += 1;
        // Absence is not cached, so nothing is to be invalidated.
        Ok(())
    }

    /// Checks that a domain could have a mapping.
    pub(super) fn check(&self, mapping: &Mapping) -> Result<(), DomainError> {
        let Mapping {
            first,
            last,
            physical,
            ..
        } = *mapping;
        let range = first..=last;
        let input = &self.config.input;
        let aligned = first % PAGE == 0 && last % PAGE == PAGE - 1 && physical % PAGE == 0;
        if first > last || !aligned || !input.contains(&first) || !input.contains(&last) {
            return Err(DomainError::Range(range));
        }
        let bytes = last - first;
        if physical.checked_add(bytes).is_none() {
            return Err(DomainError::Physical { physical, bytes });
        }
        if self
            .reserved()
            .any(|reserved| first <= *reserved.end() && *reserved.start() <= last)
        {
            return Err(DomainError::Reserved(range));
        }
        Ok(())
    }

    /// Addresses that cannot be mapped; the first is the interrupt address range.
    pub fn reserved(&self) -> impl Iterator<Item = RangeInclusive<u64>> {
        [RANGE_FIRST..=RANGE_LAST]
            .into_iter()
            .chain(self.config.reserved.iter().cloned())
    }

    /// Removes the mappings in a range of a domain, which may hold none.
    ///
    /// # Errors
    ///
    /// No such domain, or a bypass domain; an empty range, or one that would split a mapping.
    pub fn unmap(&self, id: u32, range: RangeInclusive<u64>) -> Result<(), DomainError> {
        let mut inner = self.write();
        let domain = domain(&mut inner, id)?;
        if range.is_empty() {
            return Err(DomainError::Range(range));
        }
        let Ok(removed) = domain.mappings.remove(&range) else {
            return Err(DomainError::Split(range));
        };
        if removed > 0 {
            inner.mapped -= removed;
            inner.invalidate(|endpoint| inner.attached.get(&endpoint) == Some(&id), range);
        }
        Ok(())
    }

    /// Removes all domains, as when the driver resets the device. The bypass of endpoints in no domain stays as it is.
    pub fn reset(&self) {
        let mut inner = self.write();
        let Inner {
            bypass: _,
            domains,
            attached,
            mapped,
            endpoints: _,
        } = &mut *inner;
        domains.clear();
        attached.clear();
        *mapped = 0;
        inner.invalidate(|_| true, 0..=u64::MAX);
    }

    /// Whether no guard is left that may have used what was taken away. If not, the [`DomainEvents`] are told when it is worth
    /// asking again.
    pub fn settled(&self) -> bool {
        let mut draining = lock(&self.draining);
        // First this, then the counts: a guard that goes meanwhile is either seen gone or tells.
        self.waiting.store(true, Ordering::SeqCst);
        draining.retain(|generation| !generation.done());
        if draining.is_empty() {
            let endpoints: Vec<_> = self.read().endpoints().collect();
            draining.extend(
                endpoints
                    .iter()
                    .flat_map(|endpoint| endpoint.cache.lanes())
                    .filter_map(|lane| lane.turn()),
            );
        }
        let settled = draining.is_empty();
        if settled {
            self.waiting.store(false, Ordering::SeqCst);
        }
        settled
    }

    fn events(&self) -> Option<Arc<dyn DomainEvents>> {
        lock(&self.events).as_ref()?.upgrade()
    }
}

/// A domain with mappings.
fn domain(inner: &mut Inner, id: u32) -> Result<&mut Domain, DomainError> {
    let domain = inner.domains.get_mut(&id);
    let domain = domain.ok_or(DomainError::NoDomain(id))?;
    if domain.bypass {
        return Err(DomainError::Bypass(id));
    }
    Ok(domain)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: PhysicalMemory> fmt::Debug for Domains<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domains")
            .field("config", &self.config)
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

/// An endpoint at its domains.
struct Port<M: PhysicalMemory> {
    domains: Arc<Domains<M>>,
    endpoint: Arc<Endpoint>,
}

impl<M: PhysicalMemory> Translator<M> for Port<M> {
    fn walk(&self, _physical: &M::T, address: u64, access: Access) -> Option<Leaf> {
        let inner = self.domains.read();
        let endpoint = self.endpoint.requester();
        let kind = match inner.leaf(endpoint, address) {
            Ok(leaf) if leaf.allows(access) => {
                // Still under the lock, so that an invalidation comes later.
                self.endpoint.cache.insert(address, leaf);
                return Some(leaf);
            }
            Ok(_) => FaultKind::Mapping,
            Err(kind) => kind,
        };
        drop(inner);
        if let Some(events) = self.domains.events() {
            events.fault(Fault {
                endpoint,
                address,
                access,
                kind,
            });
        }
        None
    }

    fn drained(&self) {
        if self.domains.waiting.load(Ordering::SeqCst)
            && let Some(events) = self.domains.events()
        {
            events.drained();
        }
    }

    fn set_requester(&self, requester: RequesterId) {
        // With the domains locked, so that no walk caches for the old one.
        let _inner = self.domains.write();
        self.endpoint
            .requester
            .store(requester.0, Ordering::Release);
        self.endpoint.cache.invalidate(0, u64::MAX);
    }
}
