use std::time::Duration;

/// When a mapping that its user gave back is really removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// At once: removed, invalidated and waited for before `unmap` returns. Mappings are used once.
    Strict,
    /// Removed at once, invalidated together with others: when `quota` wait for it, or the first of them does for `age`. Until then
    /// a device may reach the page through the IOTLB. Linux's lazy mode, with [`Strategy::LINUX_DEFERRED`]'s numbers.
    Deferred {
        /// How many may wait.
        quota: usize,
        /// How long one may wait.
        age: Duration,
    },
    /// Removed and its invalidation submitted at once, but not waited for (Amit et al., ATC'11).
    Asynchronous,
    /// As strict, but a page that is mapped is mapped again by counting (Willmann, Rixner and Cox, ATC'08).
    Shared,
    /// Never: a page that was mapped stays (Yassour, Ben-Yehuda and Wasserman, 2010).
    Persistent,
    /// A page that was mapped stays as long as there is room (the same paper).
    OnDemand {
        /// How many mappings there may be, unless more are in use.
        quota: usize,
    },
    /// Optimistic teardown (Amit et al., ATC'11): a mapping that is given back stays, and is used again if its page is mapped
    /// again before it is reclaimed: when more than `quota` are stale, or after `age`. Always reclaims.
    Optimistic {
        /// How many may be stale.
        quota: usize,
        /// How long one may be stale.
        age: Duration,
    },
}

impl Strategy {
    /// Linux's deferred invalidation: 256 entries a CPU, 10 ms (drivers/iommu/dma-iommu.c, `IOVA_FQ_SIZE` and `IOVA_FQ_TIMEOUT`).
    pub const LINUX_DEFERRED: Self = Self::Deferred {
        quota: 256,
        age: Duration::from_millis(10),
    };

    /// Whether a page that is mapped, or stale, is found again by its address.
    pub(super) const fn reuses(self) -> bool {
        match self {
            Self::Strict | Self::Deferred { .. } | Self::Asynchronous => false,
            Self::Shared | Self::Persistent | Self::OnDemand { .. } | Self::Optimistic { .. } => {
                true
            }
        }
    }
}
