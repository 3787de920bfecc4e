use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;
use vring::{Chain, Features, Queue, QueueState, View};

use super::Disk;
use super::backend::BlockBackend;
use super::blocking::BlockingIo;
use super::request::{Finished, Request, answer};
use super::spec::{self, RequestStatus};
use super::transfer::Uring;
use crate::device::{DeviceError, DeviceEvents, QueueInterrupt, QueueResources, start_ring};
use crate::dma::DmaView;
use crate::polling::Polling;
use crate::worker::Poll;

/// Rounds of a busy queue before the other tasks of its worker get their turn.
const ROUNDS: usize = 4;
/// How often a queue is looked at for more, at most, before it sleeps: some microseconds.
const POLLS: u32 = 256;

/// What the driver, or the host, did to make the queue useless.
enum Failure {
    Ring,
    /// A request without room for a status.
    NoStatus,
    /// The ring of the host.
    Uring,
}

impl From<vring::Error> for Failure {
    fn from(_: vring::Error) -> Self {
        Self::Ring
    }
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Self::Uring
    }
}

/// A request queue on a worker's loop.
pub(super) struct BlockQueue<M: DmaView, B> {
    disk: Arc<Disk<B>>,
    queue: Queue<M>,
    memory: M,
    kick: Arc<EventFd>,
    interrupt: Arc<dyn QueueInterrupt>,
    events: Option<Arc<dyn DeviceEvents>>,
    blocking: BlockingIo<M, B>,
    uring: Option<Uring<M, B>>,
    /// It is polled. Kicks are not needed then.
    awake: bool,
    polling: Polling,
    /// The ring must not stay mapped while the queue waits: an IOMMU's invalidations wait for it.
    unmap: bool,
    failed: bool,
}

impl<M: DmaView, B: BlockBackend> BlockQueue<M, B> {
    pub(super) fn new(
        index: u16,
        disk: Arc<Disk<B>>,
        events: Option<Arc<dyn DeviceEvents>>,
        resources: QueueResources<M>,
        state: Option<&QueueState>,
    ) -> Result<Self, DeviceError> {
        let QueueResources {
            memory,
            features,
            config,
            kick,
            interrupt,
            in_flight,
        } = resources;
        let queue = start_ring(index, memory.clone(), &config, state, in_flight)?;
        // A driver that cannot flush expects writes to last (virtio 1.3 §5.2.6.2).
        let durable = features & spec::Features::FLUSH.bits() == 0;
        let backend = &disk.backend;
        let blocking = BlockingIo::new(Arc::clone(backend), Arc::clone(&disk.pool), durable)?;
        let uring = if disk.uring {
            Uring::new(backend, queue.size(), durable)
        } else {
            None
        };
        let unmap = config.features.contains(Features::ACCESS_PLATFORM);
        Ok(Self {
            disk,
            queue,
            memory,
            kick,
            interrupt,
            events,
            blocking,
            uring,
            awake: false,
            polling: Polling::new(if unmap { 0 } else { POLLS }),
            unmap,
            failed: false,
        })
    }

    fn run(&mut self, woken: bool) {
        if self.failed {
            // The host's events must be taken all the same.
            let _ = self.take_finished(false);
            return;
        }
        let stepped = self.step(woken);
        if self.unmap {
            self.queue.unmap();
        }
        if stepped.is_err() {
            self.fail();
        }
    }

    /// Serves the queue if there may be something to do, as there is if it was `woken`, and has it sleep if that has not been so for a
    /// while.
    fn step(&mut self, woken: bool) -> Result<(), Failure> {
        if !self.awake {
            self.awake = true;
            self.queue.disable_kicks()?;
        }
        if woken {
            self.serve()?;
        } else if self.has_work()? {
            self.polling.found();
            self.serve()?;
        } else {
            self.polling.missed();
        }
        if self.polling.is_over() {
            self.awake = self.queue.enable_kicks()?;
            if self.awake {
                self.queue.disable_kicks()?;
            } else {
                self.polling.give_up();
            }
        }
        Ok(())
    }

    /// Whether there are requests, or the host has finished some.
    fn has_work(&mut self) -> Result<bool, Failure> {
        Ok(self.queue.has_new()? || self.uring.as_mut().is_some_and(Uring::has_finished))
    }

    /// Takes requests and answers what has finished, and again what came meanwhile: the more there is to do, the more
    /// requests one interrupt is for.
    fn serve(&mut self) -> Result<(), Failure> {
        for _ in 0..ROUNDS {
            let begun = self.begin_requests()?;
            self.answer_finished(false)?;
            if begun == 0 {
                break;
            }
        }
        self.interrupt()
    }

    /// Takes a queue's worth of requests, and tells how many there were.
    fn begin_requests(&mut self) -> Result<u16, Failure> {
        let view = View::new(&self.memory);
        for begun in 0..self.queue.size() {
            match self.queue.pop(&view)? {
                Some(chain) => self.begin(chain)?,
                None => return Ok(begun),
            }
        }
        Ok(self.queue.size())
    }

    fn begin(&mut self, chain: Chain<View<M>>) -> Result<(), Failure> {
        match Request::parse(&chain, self.disk.limits) {
            Err(status) => self.answer(chain, None, status),
            Ok(request @ Request::GetId) => self.answer(chain, Some(request), RequestStatus::Ok),
            // Without room for a status it must not even begin.
            Ok(_) if chain.writable_len() == 0 => Err(Failure::NoStatus),
            Ok(request) if self.disk.backend.is_immediate() => {
                let result = self.blocking.perform(&chain, request);
                self.answer(chain, Some(request), status_of(request, result))
            }
            Ok(request) => {
                match &mut self.uring {
                    Some(uring) if Uring::<M, B>::takes(request) => uring.submit(chain, request),
                    _ => self.blocking.submit(chain, request),
                }
                Ok(())
            }
        }
    }

    fn answer(
        &mut self,
        chain: Chain<View<M>>,
        request: Option<Request>,
        status: RequestStatus,
    ) -> Result<(), Failure> {
        let written = answer(&chain, request, status, &self.disk.id).ok_or(Failure::NoStatus)?;
        Ok(self.queue.push(chain, written)?)
    }

    /// Submits, and takes what the host has finished. With `wait` it waits for something, unless nothing is in flight.
    fn take_finished(&mut self, wait: bool) -> io::Result<Vec<Finished<M>>> {
        let mut finished = self.blocking.finished(wait);
        if let Some(uring) = &mut self.uring {
            uring.finished(wait, &mut finished)?;
        }
        Ok(finished)
    }

    /// Answers what has finished, and tells how many that were.
    fn answer_finished(&mut self, wait: bool) -> Result<usize, Failure> {
        let finished = self.take_finished(wait)?;
        let count = finished.len();
        for Finished {
            chain,
            request,
            result,
        } in finished
        {
            self.answer(chain, Some(request), status_of(request, result))?;
        }
        Ok(count)
    }

    fn interrupt(&mut self) -> Result<(), Failure> {
        if self.queue.needs_interrupt()? {
            self.interrupt.trigger();
        }
        Ok(())
    }

    fn fail(&mut self) {
        self.failed = true;
        self.awake = false;
        if let Some(events) = &self.events {
            events.needs_reset();
        }
    }

    /// Waits for what is in flight and returns where the queue stopped.
    pub(super) fn stop(mut self) -> QueueState {
        while !self.failed {
            match self.answer_finished(true) {
                Ok(0) => break,
                Ok(_) => {}
                Err(_) => self.fail(),
            }
        }
        if !self.failed && self.interrupt().is_err() {
            self.fail();
        }
        if self.failed {
            while self
                .take_finished(true)
                .is_ok_and(|finished| !finished.is_empty())
            {}
        }
        self.queue.save()
    }
}

fn status_of(request: Request, result: io::Result<()>) -> RequestStatus {
    match result {
        Ok(()) => RequestStatus::Ok,
        Err(error) => {
            tracing::warn!(?request, %error, "disk");
            RequestStatus::IoErr
        }
    }
}

impl<M: DmaView, B: BlockBackend> Poll for BlockQueue<M, B> {
    fn poll(&mut self, _ops: &mut EventOps<'_>) -> bool {
        if self.awake {
            self.run(false);
        }
        self.awake
    }
}

impl<M: DmaView, B: BlockBackend> MutEventSubscriber for BlockQueue<M, B> {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let sources = [
            Some(self.kick.as_raw_fd()),
            Some(self.blocking.event().as_raw_fd()),
            self.uring.as_ref().map(Uring::event),
        ];
        for source in sources.into_iter().flatten() {
            if ops.add(Events::new_raw(source, EventSet::IN)).is_err() {
                return self.fail();
            }
        }
        self.run(true);
    }

    fn process(&mut self, events: Events, _ops: &mut EventOps<'_>) {
        if events.fd() == self.kick.as_raw_fd() {
            // Fails only if somebody else was faster; the queue is looked at anyway.
            let _ = self.kick.read();
        }
        self.run(true);
    }
}
