use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::{Access, Lane, Leaf, iotlb::Iotlb};

/// What is cached of one device's translations, and the lanes of the guards that may use it. Hits take no lock.
#[derive(Debug)]
pub(crate) struct Cache {
    iotlb: Iotlb,
    /// Also held by whoever changes the IOTLB.
    lanes: Mutex<Vec<Weak<Lane>>>,
}

impl Cache {
    pub fn new() -> Self {
        Self {
            iotlb: Iotlb::new(),
            lanes: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Lane>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a lane for the guards of a view.
    pub fn add_lane(&self) -> Arc<Lane> {
        let lane = Arc::new(Lane::default());
        let mut lanes = self.lock();
        lanes.retain(|lane| lane.strong_count() > 0);
        lanes.push(Arc::downgrade(&lane));
        lane
    }

    /// The lanes of the views that live.
    pub fn lanes(&self) -> Vec<Arc<Lane>> {
        self.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// The page of `address` if it is cached and allows `access`.
    #[inline]
    pub fn get(&self, address: u64, access: Access) -> Option<Leaf> {
        self.iotlb.get(address, access)
    }

    /// Caches the page of `address`. Whoever calls this sees to it that an invalidation comes either before the walk or after this.
    pub fn insert(&self, address: u64, leaf: Leaf) {
        let _lanes = self.lock();
        self.iotlb.insert(address, leaf);
    }

    /// Drops the pages that overlap `first..=last` and marks the lanes whose guards may have used them.
    pub fn invalidate(&self, first: u64, last: u64) {
        let lanes = self.lock();
        self.iotlb.invalidate(first, last);
        for lane in lanes.iter().filter_map(Weak::upgrade) {
            lane.soil();
        }
    }
}
