use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pio_mmio_bus::pci::RequesterId;
use vm_memory::GuestMemory;

use super::{
    Capabilities,
    invalidation::Invalidation,
    walk::{self, Context, RootTable},
};
use crate::{
    dma::{Access, Cache, Leaf},
    spec::{
        fault::FaultReason,
        invalidation::{ContextScope, IotlbScope, Pages, PasidScope},
    },
};

/// A requester, with a PASID or without: its entry of the context- or PASID-cache and its IOTLB.
///
/// A miss walks under the source's lock, and so does an invalidation drop what is cached: a walk that read an
/// entry before it changed is in the cache before the invalidation comes, and goes with it.
#[derive(Debug)]
pub(super) struct Source {
    cache: Arc<Cache>,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    requester: RequesterId,
    pasid: Option<u32>,
    context: Option<Context>,
}

/// A request that was blocked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Blocked {
    pub requester: RequesterId,
    pub pasid: Option<u32>,
    pub reason: FaultReason,
    /// Fault processing is disabled for it.
    pub quiet: bool,
}

impl Source {
    pub fn new(requester: RequesterId, pasid: Option<u32>) -> Self {
        Self {
            cache: Arc::new(Cache::new()),
            inner: Mutex::new(Inner {
                requester,
                pasid,
                context: None,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is cached of its translations.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// The requester ID changed (the guest renumbered a bus): what was cached belongs to nobody.
    pub fn set_requester(&self, requester: RequesterId) {
        let mut inner = self.lock();
        inner.requester = requester;
        self.forget(&mut inner);
    }

    /// Walks to the page of `address` and caches it. `root` tells the root table, or none if translation is off.
    pub fn walk<M: GuestMemory + ?Sized>(
        &self,
        memory: &M,
        capabilities: &Capabilities,
        root: impl FnOnce() -> Option<RootTable>,
        address: u64,
        access: Access,
    ) -> Result<Leaf, Option<Blocked>> {
        let mut inner = self.lock();
        let Some(root) = root() else {
            let leaf = Leaf::bypass(address).ok_or(None)?;
            self.cache.insert(address, leaf);
            return Ok(leaf);
        };
        let (requester, pasid) = (inner.requester, inner.pasid);
        let blocked = |reason, quiet| {
            Some(Blocked {
                requester,
                pasid,
                reason,
                quiet,
            })
        };
        let context = match inner.context {
            Some(context) => context,
            None => {
                let context = root
                    .context(memory, capabilities, requester.0, pasid)
                    .map_err(|(reason, quiet)| blocked(reason, quiet))?;
                *inner.context.insert(context)
            }
        };
        let leaf = walk::translate(memory, capabilities, &context, address, access)
            .map_err(|reason| blocked(reason, context.quiet))?;
        self.cache.insert(address, leaf);
        Ok(leaf)
    }

    /// Drops what `invalidation` covers and marks the lanes whose guards may have used it.
    pub fn invalidate(&self, invalidation: &Invalidation) {
        let mut inner = self.lock();
        match *invalidation {
            Invalidation::All => self.forget(&mut inner),
            Invalidation::Context(scope) => {
                let covered = match scope {
                    ContextScope::Global => true,
                    ContextScope::Domain(domain) => inner
                        .context
                        .is_some_and(|context| context.domain == domain),
                    ContextScope::Device { source, mask } => {
                        ContextScope::covers_source(source, mask, inner.requester.0)
                    }
                };
                if covered {
                    self.forget(&mut inner);
                }
            }
            Invalidation::Pasid(scope) => {
                let covered = |context: Context| match scope {
                    PasidScope::Global => true,
                    PasidScope::Domain(domain) => context.domain == domain,
                    PasidScope::Pasid { domain, pasid } => {
                        context.domain == domain && context.pasid == Some(pasid)
                    }
                };
                if inner.context.is_some_and(covered) {
                    self.forget(&mut inner);
                }
            }
            Invalidation::Iotlb(scope) => {
                let (domain, pages) = match scope {
                    IotlbScope::Global => (None, Pages::ALL),
                    IotlbScope::Domain(domain) => (Some(domain), Pages::ALL),
                    IotlbScope::Pages(domain, pages) => (Some(domain), pages),
                };
                let covered = |context: Context| domain.is_none_or(|d| context.domain == d);
                // Pages of nested translations are cached by their first-stage address, which these are not.
                let nested = |context: Context| matches!(context.stages, walk::Stages::Nested(..));
                if inner.context.is_some_and(covered) {
                    let pages = if inner.context.is_some_and(nested) {
                        Pages::ALL
                    } else {
                        pages
                    };
                    self.drop_pages(pages);
                }
            }
            Invalidation::PasidIotlb {
                domain,
                pasid,
                pages,
            } => {
                let covered =
                    |context: Context| context.domain == domain && context.pasid == Some(pasid);
                if inner.context.is_some_and(covered) {
                    self.drop_pages(pages.unwrap_or(Pages::ALL));
                }
            }
        }
    }

    fn forget(&self, inner: &mut Inner) {
        inner.context = None;
        self.drop_pages(Pages::ALL);
    }

    fn drop_pages(&self, pages: Pages) {
        self.cache.invalidate(pages.address, pages.last());
    }
}
