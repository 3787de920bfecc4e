//! The block device (virtio 1.3 §5.2).

mod backend;
mod blocking;
mod file;
mod memory;
mod null;
mod pool;
mod queue;
mod request;
pub mod spec;
mod transfer;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vring::QueueState;
use zerocopy::IntoBytes;

pub use backend::BlockBackend;
pub use file::FileDisk;
pub use memory::MemoryDisk;
pub use null::NullDisk;

use crate::config::read_config;
use crate::device::{DeviceError, DeviceEvents, DeviceType, QueueResources, VirtioDevice};
use crate::dma::DmaView;
use crate::worker::{Task, Worker};
use pool::Pool;
use queue::BlockQueue;
use request::Limits;
use spec::{Config, Features, ID_LEN, SECTOR};

/// The greatest range of one discard or write-zeroes, in sectors: 1 GiB, so that none takes for ever.
pub(crate) const MAX_RANGE_SECTORS: u32 = 1 << 21;

/// Threads for what io_uring does not do.
const POOL_BESIDE_URING: usize = 1;
/// Threads when there is no io_uring.
const POOL: usize = 4;

/// How a block device is made.
#[derive(Clone, Debug)]
pub struct BlockOptions {
    /// Number of request queues, 1 to 1024.
    pub queues: u16,
    /// Greatest size of each queue, in descriptors: a power of two, 4 to 32768.
    pub queue_size: u16,
    /// What the driver gets as identity string; up to 20 bytes are used.
    pub id: String,
    /// Whether to use io_uring where the back-end and the kernel can. Otherwise a thread pool does the work.
    pub io_uring: bool,
}

impl Default for BlockOptions {
    fn default() -> Self {
        Self {
            queues: 1,
            queue_size: 256,
            id: String::new(),
            io_uring: true,
        }
    }
}

/// Why a block device could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The number of queues is out of range.
    #[error("a block device has 1 to 1024 queues, not {0}")]
    Queues(u16),
    /// The size of the queues is out of range.
    #[error("queue size {0} is not a power of two from 4 to 32768")]
    QueueSize(u16),
    /// Nobody would serve it.
    #[error("a block device needs a worker")]
    NoWorker,
    /// The threads of the pool could not be started.
    #[error("cannot start the block device's threads: {0}")]
    Threads(#[from] io::Error),
}

/// The queues that run, by index.
type Running<M, B> = Vec<Option<Task<BlockQueue<M, B>>>>;

/// What the queues of a device share.
struct Disk<B> {
    backend: Arc<B>,
    pool: Arc<Pool>,
    uring: bool,
    limits: Limits,
    id: [u8; ID_LEN],
}

/// A block device (virtio 1.3 §5.2) over a [`BlockBackend`].
///
/// Queue `i` is served by worker `i` modulo the number of workers. Reads, writes and flushes of a back-end that has a file go to an
/// io_uring of the queue's own; everything else to a small thread pool.
pub struct Block<M: DmaView, B> {
    disk: Arc<Disk<B>>,
    config: Config,
    features: Features,
    queue_max_sizes: Vec<u16>,
    workers: Vec<Worker>,
    events: OnceLock<Arc<dyn DeviceEvents>>,
    running: Mutex<Running<M, B>>,
}

impl<M: DmaView, B: BlockBackend> Block<M, B> {
    /// A device over `backend`, served by `workers`.
    ///
    /// # Errors
    /// Options out of range, no worker, no threads left.
    pub fn new(
        backend: B,
        workers: Vec<Worker>,
        options: BlockOptions,
    ) -> Result<Self, BlockError> {
        let BlockOptions {
            queues,
            queue_size,
            id,
            io_uring,
        } = options;
        if !(1..=1024).contains(&queues) {
            return Err(BlockError::Queues(queues));
        }
        if !queue_size.is_power_of_two() || !(4..=32768).contains(&queue_size) {
            return Err(BlockError::QueueSize(queue_size));
        }
        if workers.is_empty() {
            return Err(BlockError::NoWorker);
        }
        let uring = io_uring && backend.file().is_some() && io_uring::IoUring::new(1).is_ok();
        let pool = Pool::spawn(if uring { POOL_BESIDE_URING } else { POOL })?;
        let sectors = backend.size() / SECTOR;
        let block = backend.physical_block();
        let block_sectors = block / 512;
        let config = Config {
            capacity: sectors.into(),
            // A header and a status go along.
            seg_max: u32::from(queue_size - 2).into(),
            blk_size: 512.into(),
            physical_block_exp: u8::try_from(block_sectors.ilog2()).unwrap_or(0),
            min_io_size: u16::try_from(block_sectors).unwrap_or(1).into(),
            writeback: 1,
            num_queues: queues.into(),
            max_discard_sectors: MAX_RANGE_SECTORS.into(),
            max_discard_seg: 1.into(),
            discard_sector_alignment: block_sectors.into(),
            max_write_zeroes_sectors: MAX_RANGE_SECTORS.into(),
            max_write_zeroes_seg: 1.into(),
            write_zeroes_may_unmap: 1,
            ..Config::default()
        };
        let mut features = Features::SEG_MAX
            | Features::BLK_SIZE
            | Features::FLUSH
            | Features::TOPOLOGY
            | Features::MQ;
        features |= if backend.read_only() {
            Features::RO
        } else {
            Features::DISCARD | Features::WRITE_ZEROES
        };
        let mut id_bytes = [0; ID_LEN];
        for (to, from) in id_bytes.iter_mut().zip(id.bytes()) {
            *to = from;
        }
        Ok(Self {
            disk: Arc::new(Disk {
                limits: Limits {
                    capacity: sectors * SECTOR,
                    read_only: backend.read_only(),
                },
                backend: Arc::new(backend),
                pool: Arc::new(pool),
                uring,
                id: id_bytes,
            }),
            config,
            features,
            queue_max_sizes: vec![queue_size; usize::from(queues)],
            workers,
            events: OnceLock::new(),
            running: Mutex::new((0..queues).map(|_| None).collect()),
        })
    }

    /// What stores the data.
    pub fn backend(&self) -> &B {
        &self.disk.backend
    }

    fn running(&self) -> MutexGuard<'_, Running<M, B>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: DmaView, B: BlockBackend> VirtioDevice<M> for Block<M, B> {
    fn device_type(&self) -> DeviceType {
        DeviceType::BLOCK
    }

    fn features(&self) -> u64 {
        self.features.bits()
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &self.queue_max_sizes
    }

    fn connect(&self, events: Arc<dyn DeviceEvents>) {
        let _ = self.events.set(events);
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(self.config.as_bytes(), offset, data);
    }

    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    fn start_queue(
        &self,
        index: u16,
        resources: QueueResources<M>,
        state: Option<QueueState>,
    ) -> Result<(), DeviceError> {
        let mut running = self.running();
        let slot = running
            .get_mut(usize::from(index))
            .ok_or(DeviceError::NoQueue(index))?;
        if slot.is_some() {
            return Err(DeviceError::AlreadyStarted(index));
        }
        let worker = self
            .workers
            .iter()
            .cycle()
            .nth(usize::from(index))
            .ok_or(DeviceError::NoQueue(index))?;
        let queue = BlockQueue::new(
            index,
            Arc::clone(&self.disk),
            self.events.get().cloned(),
            resources,
            state.as_ref(),
        )?;
        *slot = Some(worker.add_polled(queue)?);
        Ok(())
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        let task = self.running().get_mut(usize::from(index))?.take()?;
        task.remove().map(BlockQueue::stop)
    }

    fn reset(&self) {}
}
