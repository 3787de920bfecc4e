use std::collections::VecDeque;
use std::mem::offset_of;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use iommu_emul::dma::PhysicalMemory;
use iommu_emul::domain::{DomainEvents, DomainStateError, Domains, DomainsState, Fault};
use serde::{Deserialize, Serialize};
use vring::QueueState;
use zerocopy::IntoBytes;

use super::faults::Faults;
use super::requests::Requests;
use super::spec::{Config, EVENT_QUEUE, Features, REQUEST_QUEUE, ReservedMemory, Status};
use crate::config::read_config;
use crate::device::{
    DeviceError, DeviceEvents, DeviceState, DeviceStateError, DeviceType, QueueResources,
    VirtioDevice,
};
use crate::dma::DmaView;
use crate::serve::ServedQueues;
use crate::worker::Worker;

/// Descriptors of each queue.
const QUEUE_SIZE: u16 = 64;

/// Faults that wait for the driver at most; later ones are dropped.
const MAX_FAULTS: usize = 64;

/// All sizes from 4 KiB on: a mapping is one entry, however long it is.
const PAGE_SIZES: u64 = !0xfff;

/// An IOMMU device (§5.13), through which the driver manages [`Domains`]. Its own queues lie in plain memory, not behind itself.
pub struct Iommu<M: PhysicalMemory> {
    shared: Arc<Shared<M>>,
    worker: Worker,
}

/// What driver and device have agreed on beyond the queues. Faults that wait for the driver are not kept (§5.13.6.7 allows that).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IommuState {
    /// Domains and mappings.
    pub domains: DomainsState,
    /// The answer to the request that waits for I/O, which was carried out already.
    pub pending: Option<Status>,
}

/// Why an IOMMU device refused a saved state.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IommuError {
    /// Its domains.
    #[error(transparent)]
    Domains(#[from] DomainStateError),
    /// Only a request that succeeded waits.
    #[error("saved state: a request with status {0:?} waits for I/O")]
    Pending(Status),
}

/// What the queues share.
pub(super) struct Shared<M: PhysicalMemory> {
    pub domains: Arc<Domains<M>>,
    queues: ServedQueues,
    faults: Mutex<VecDeque<Fault>>,
    pending: Mutex<Option<Status>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<M: PhysicalMemory> Shared<M> {
    /// The answer to the request that waits for I/O.
    pub fn take_pending(&self) -> Option<Status> {
        lock(&self.pending).take()
    }

    pub fn set_pending(&self, status: Status) {
        *lock(&self.pending) = Some(status);
    }

    pub fn has_faults(&self) -> bool {
        !lock(&self.faults).is_empty()
    }

    pub fn take_fault(&self) -> Option<Fault> {
        lock(&self.faults).pop_front()
    }

    /// Bytes of properties of an endpoint.
    pub fn probe_size(&self) -> u32 {
        let properties = self.domains.reserved().count() * size_of::<ReservedMemory>();
        u32::try_from(properties).unwrap_or(u32::MAX)
    }
}

impl<M: PhysicalMemory> DomainEvents for Shared<M> {
    fn drained(&self) {
        self.queues.nudge(REQUEST_QUEUE);
    }

    fn fault(&self, fault: Fault) {
        let mut faults = lock(&self.faults);
        if faults.len() < MAX_FAULTS {
            faults.push_back(fault);
            drop(faults);
            self.queues.nudge(EVENT_QUEUE);
        }
    }
}

impl<M: PhysicalMemory> Iommu<M> {
    /// A device for `domains`, which have no other.
    pub fn new(domains: Arc<Domains<M>>, worker: Worker) -> Self {
        let shared = Arc::new(Shared {
            domains,
            queues: ServedQueues::new(2),
            faults: Mutex::default(),
            pending: Mutex::default(),
        });
        let events: Weak<dyn DomainEvents> = Arc::downgrade(&shared) as _;
        shared.domains.connect(events);
        Self { shared, worker }
    }

    /// The domains.
    pub fn domains(&self) -> &Arc<Domains<M>> {
        &self.shared.domains
    }

    /// What driver and device have agreed on. To be taken while no queue runs.
    pub fn save(&self) -> IommuState {
        IommuState {
            domains: self.shared.domains.save(),
            pending: *lock(&self.shared.pending),
        }
    }

    /// Takes over a saved state, before a queue is started.
    ///
    /// # Errors
    /// A state that no driver of this device can bring about. The device is as it was then.
    pub fn restore(&self, state: IommuState) -> Result<(), IommuError> {
        let IommuState { domains, pending } = state;
        if let Some(status) = pending.filter(|status| *status != Status::Ok) {
            return Err(IommuError::Pending(status));
        }
        self.shared.domains.restore(domains)?;
        *lock(&self.shared.pending) = pending;
        Ok(())
    }
}

impl<M: PhysicalMemory> Drop for Iommu<M> {
    fn drop(&mut self) {
        // A running queue holds what the queues share, and that holds the queue.
        for index in [REQUEST_QUEUE, EVENT_QUEUE] {
            self.shared.queues.stop(index);
        }
    }
}

impl<V: DmaView, M: PhysicalMemory> VirtioDevice<V> for Iommu<M> {
    fn device_type(&self) -> DeviceType {
        DeviceType::IOMMU
    }

    fn features(&self) -> u64 {
        Features::all().bits()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 2]
    }

    fn connect(&self, events: Arc<dyn DeviceEvents>) {
        self.shared.queues.connect(events);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let domains = &self.shared.domains;
        let limits = domains.config();
        let config = Config {
            page_size_mask: PAGE_SIZES.into(),
            input_range: [*limits.input.start(), *limits.input.end()].map(Into::into),
            domain_range: [*limits.domains.start(), *limits.domains.end()].map(Into::into),
            probe_size: self.shared.probe_size().into(),
            bypass: domains.bypass().into(),
            reserved: [0; 3],
        };
        read_config(config.as_bytes(), offset, data);
    }

    /// Only `bypass` can be written, with 0 or 1 (§5.13.4).
    fn write_config(&self, offset: u64, data: &[u8]) {
        let at = (offset_of!(Config, bypass) as u64)
            .checked_sub(offset)
            .and_then(|at| usize::try_from(at).ok());
        match at.and_then(|at| data.get(at)) {
            Some(0) => self.shared.domains.set_bypass(false),
            Some(1) => self.shared.domains.set_bypass(true),
            _ => {}
        }
    }

    fn start_queue(
        &self,
        index: u16,
        resources: QueueResources<V>,
        state: Option<QueueState>,
    ) -> Result<(), DeviceError> {
        let shared = Arc::clone(&self.shared);
        let queues = &self.shared.queues;
        let worker = &self.worker;
        match index {
            REQUEST_QUEUE => {
                let features = Features::from_bits_truncate(resources.features);
                let requests = Requests { shared, features };
                queues.start(index, worker, requests, resources, state)
            }
            EVENT_QUEUE => queues.start(index, worker, Faults { shared }, resources, state),
            _ => Err(DeviceError::NoQueue(index)),
        }
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.shared.queues.stop(index)
    }

    fn device_state(&self) -> DeviceState {
        DeviceState::Iommu(self.save())
    }

    fn restore_device_state(&self, state: DeviceState) -> Result<(), DeviceStateError> {
        match state {
            DeviceState::Iommu(state) => Ok(self.restore(state)?),
            _ => Err(DeviceStateError::Kind),
        }
    }

    /// Endpoints are in no domain then; whether they bypass the IOMMU stays as it is (§5.13.4, §5.13.5).
    fn reset(&self) {
        let Shared {
            domains,
            queues: _,
            faults,
            pending,
        } = &*self.shared;
        domains.reset();
        lock(faults).clear();
        *lock(pending) = None;
    }
}
