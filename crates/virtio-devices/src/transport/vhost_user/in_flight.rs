//! The memory in which what is in flight outlives this process.

use std::fs::File;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::MmapRegion;
use vring::{Features, InFlightRegion};

use super::backend::VhostUserError;
use super::memory::map;

/// A file for `queues` queues of `size` descriptors of a device that has `present`, and its length.
pub(super) fn create(
    queues: u16,
    size: u16,
    present: usize,
    features: u64,
) -> Result<(u64, File), VhostUserError> {
    let features = Features::from_bits_truncate(features);
    let len = InFlightRegion::len(features, size) as u64 * u64::from(queues);
    if usize::from(queues) > present || !(1..=vring::spec::MAX_QUEUE_SIZE).contains(&size) {
        return Err(VhostUserError::InFlight { queues, size, len });
    }
    let file = memfd_create("vhost-user-in-flight", MemfdFlags::CLOEXEC);
    let file = File::from(file.map_err(std::io::Error::from)?);
    file.set_len(len)?;
    Ok((len, file))
}

/// What the frontend has kept, from this backend or the one before it.
pub(super) struct InFlightArea {
    area: Arc<MmapRegion>,
    queues: u16,
    size: u16,
}

impl InFlightArea {
    pub(super) fn new(place: &VhostUserInflight, file: File) -> Result<Self, VhostUserError> {
        let (offset, len) = (place.mmap_offset, place.mmap_size);
        Ok(Self {
            area: Arc::new(map(Arc::new(file), offset, len, ())?),
            queues: place.num_queues,
            size: place.queue_size,
        })
    }

    /// The part of queue `index`.
    pub(super) fn region(
        &self,
        index: u16,
        features: u64,
    ) -> Result<InFlightRegion, VhostUserError> {
        let features = Features::from_bits_truncate(features);
        let (queues, size) = (self.queues, self.size);
        let offset = InFlightRegion::len(features, size).checked_mul(index.into());
        offset
            .filter(|_| index < queues)
            .and_then(|at| InFlightRegion::new(Arc::clone(&self.area), at, features, size))
            .ok_or(VhostUserError::InFlight {
                queues,
                size,
                len: self.area.size() as u64,
            })
    }
}
