//! The entropy device (Virtio 1.3, §5.4).

use std::io::{ErrorKind, Read};
use std::sync::{Arc, Mutex, PoisonError};

use vring::{Queue, QueueState};

use crate::device::{DeviceError, DeviceEvents, DeviceType, QueueResources, VirtioDevice};
use crate::dma::DmaView;
use crate::serve::{ServedQueues, Service, Wait};
use crate::worker::Worker;

/// Descriptors of the request queue.
const QUEUE_SIZE: u16 = 64;

/// Bytes given to one request at most. A driver that wants more asks again: a device may use less than the buffer (§5.4.6.2).
pub const MAX_REQUEST: usize = 4096;

/// Requests answered before other queues have their turn.
const BURST: usize = 16;

/// An entropy device, which fills the driver's buffers from a source of random bytes.
pub struct Rng<S> {
    source: Arc<Mutex<S>>,
    queues: ServedQueues,
    worker: Worker,
}

impl<S: Read + Send + 'static> Rng<S> {
    /// A device that reads `source`, such as the file `/dev/urandom`. A source that blocks stalls the worker.
    pub fn new(source: S, worker: Worker) -> Self {
        Self {
            source: Arc::new(Mutex::new(source)),
            queues: ServedQueues::new(1),
            worker,
        }
    }
}

impl<M: DmaView, S: Read + Send + 'static> VirtioDevice<M> for Rng<S> {
    fn device_type(&self) -> DeviceType {
        DeviceType::ENTROPY
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_max_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn connect(&self, events: Arc<dyn DeviceEvents>) {
        self.queues.connect(events);
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&self, _offset: u64, _data: &[u8]) {}

    fn start_queue(
        &self,
        index: u16,
        resources: QueueResources<M>,
        state: Option<QueueState>,
    ) -> Result<(), DeviceError> {
        let requests = Requests {
            source: Arc::clone(&self.source),
            bytes: vec![0; MAX_REQUEST].into(),
        };
        self.queues
            .start(index, &self.worker, requests, resources, state)
    }

    fn stop_queue(&self, index: u16) -> Option<QueueState> {
        self.queues.stop(index)
    }

    fn reset(&self) {}
}

/// The request queue (§5.4.6).
struct Requests<S> {
    source: Arc<Mutex<S>>,
    bytes: Box<[u8]>,
}

impl<M: DmaView, S: Read + Send + 'static> Service<M> for Requests<S> {
    fn serve(
        &mut self,
        queue: &mut Queue<M>,
        memory: &M::M,
        _: bool,
    ) -> Result<Wait, vring::Error> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..BURST {
            let Some(chain) = queue.pop(&memory)? else {
                return Ok(Wait::Buffers);
            };
            let wanted = usize::try_from(chain.writable_len())
                .unwrap_or(MAX_REQUEST)
                .min(MAX_REQUEST);
            let bytes = self.bytes.get_mut(..wanted).unwrap_or_default();
            let got = loop {
                match source.read(bytes) {
                    Ok(got) => break got,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    // The driver gets an empty buffer and knows that it is.
                    Err(_) => break 0,
                }
            };
            let mut writer = chain.writer();
            writer.write(bytes.get(..got).unwrap_or_default());
            let written = writer.written();
            queue.push(chain, written)?;
        }
        Ok(Wait::Turn)
    }
}
