use crate::spec::invalidation::{ContextScope, IotlbScope, Pages, PasidScope};

/// Something that the guest declared stale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidation {
    /// Every cache: the root table was set, or translation switched.
    All,
    /// Entries of the context-cache, and with them what was found through them.
    Context(ContextScope),
    /// Entries of the PASID-cache, and with them what was found through them.
    Pasid(PasidScope),
    /// Pages by domain.
    Iotlb(IotlbScope),
    /// First-stage pages by domain and PASID.
    PasidIotlb {
        /// Domain identifier.
        domain: u16,
        /// The PASID.
        pasid: u32,
        /// The pages, or all of the PASID.
        pages: Option<Pages>,
    },
}

/// Told of each invalidation after the unit's caches dropped what it covers and before the guest learns that it is complete: the
/// place to bring a shadow of the guest's tables up to date (caching mode, §6.1).
///
/// Called with the unit's registers locked: it must not access them.
pub trait InvalidationObserver: Send + Sync {
    /// The guest declared something stale.
    fn invalidated(&self, invalidation: &Invalidation);
}
