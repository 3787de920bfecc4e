//! Serving queues on worker loops: what the network, console and entropy devices have in common.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;
use vring::{Queue, QueueState};

use crate::device::{DeviceError, DeviceEvents, QueueInterrupt, QueueResources, start_ring};

use crate::dma::DmaView;
use crate::polling::Polling;
use crate::worker::Worker;

/// `VIRTIO_F_ACCESS_PLATFORM` (Virtio 1.3, §6): the ring lies behind an IOMMU, whose invalidations wait for mappings.
const ACCESS_PLATFORM: u64 = 1 << 33;

/// How often a queue is served before others have their turn, where polling finds more.
const TURNS_TOGETHER: usize = 8;

/// What a service needs to go on. It is served again when a device [nudges](ServedQueues::nudge) it in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Buffers of the driver, more than there are.
    Buffers,
    /// Its [source](Service::source).
    Source,
    /// Nothing: it had its share, now it is the others' turn.
    Turn,
    /// A nudge.
    Nudge,
}

/// What a device does with one of its queues.
pub(crate) trait Service<M: DmaView>: Send + 'static {
    /// A host file to wait for, and which events of it.
    fn source(&self) -> Option<(RawFd, EventSet)> {
        None
    }

    /// Works on the queue's buffers. `ready` tells that the source is why it is called.
    ///
    /// # Errors
    /// Those of the queue: the driver has to reset the device.
    fn serve(
        &mut self,
        queue: &mut Queue<M>,
        memory: &M::M,
        ready: bool,
    ) -> Result<Wait, vring::Error>;

    /// How often the ring is looked at for more before the queue sleeps, at most.
    const POLLS: u32 = 0;
}

/// The queues of a device, each served by a task of its own when it runs.
pub(crate) struct ServedQueues {
    slots: Mutex<Vec<Slot>>,
    events: OnceLock<Arc<dyn DeviceEvents>>,
}

#[derive(Default)]
struct Slot {
    kick: Option<Arc<EventFd>>,
    stop: Option<Box<dyn FnOnce() -> Option<QueueState> + Send>>,
}

impl ServedQueues {
    pub(crate) fn new(count: usize) -> Self {
        Self {
            slots: Mutex::new(std::iter::repeat_with(Slot::default).take(count).collect()),
            events: OnceLock::new(),
        }
    }

    /// Sets whom to tell of errors, once.
    pub(crate) fn connect(&self, events: Arc<dyn DeviceEvents>) {
        let _ = self.events.set(events);
    }

    /// Whom to tell of changes.
    pub(crate) fn events(&self) -> Option<&Arc<dyn DeviceEvents>> {
        self.events.get()
    }

    /// Starts queue `index` on `worker`.
    pub(crate) fn start<M, S>(
        &self,
        index: u16,
        worker: &Worker,
        service: S,
        resources: QueueResources<M>,
        state: Option<QueueState>,
    ) -> Result<(), DeviceError>
    where
        M: DmaView,
        S: Service<M>,
    {
        let QueueResources {
            memory,
            features,
            config,
            kick,
            interrupt,
            in_flight,
        } = resources;
        let queue = start_ring(index, memory.clone(), &config, state.as_ref(), in_flight)?;
        {
            // Not held while the task is added: the worker may want to nudge.
            let mut slots = self.slots();
            let slot = slots
                .get_mut(usize::from(index))
                .ok_or(DeviceError::NoQueue(index))?;
            if slot.kick.is_some() {
                return Err(DeviceError::AlreadyStarted(index));
            }
            slot.kick = Some(Arc::clone(&kick));
        }
        let task = worker.add(ServedQueue {
            queue,
            memory,
            service,
            kick,
            interrupt,
            events: self.events().cloned(),
            unmap: features & ACCESS_PLATFORM != 0,
            watched: None,
            always_ready: false,
            polling: Polling::new(S::POLLS),
            failed: false,
        });
        let mut slots = self.slots();
        let slot = slots
            .get_mut(usize::from(index))
            .ok_or(DeviceError::NoQueue(index))?;
        match task {
            Ok(task) => {
                slot.stop = Some(Box::new(move || {
                    task.remove().map(|served| served.queue.save())
                }));
                Ok(())
            }
            Err(error) => {
                *slot = Slot::default();
                Err(error.into())
            }
        }
    }

    /// Stops queue `index`, if it runs.
    pub(crate) fn stop(&self, index: u16) -> Option<QueueState> {
        let slot = self
            .slots()
            .get_mut(usize::from(index))
            .map(std::mem::take)?;
        slot.stop.and_then(|stop| stop())
    }

    /// Has queue `index` served, if it runs, whatever it waits for.
    pub(crate) fn nudge(&self, index: u16) {
        if let Some(kick) = self
            .slots()
            .get(usize::from(index))
            .and_then(|slot| slot.kick.as_ref())
        {
            nudge(kick);
        }
    }

    fn slots(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn nudge(kick: &EventFd) {
    // Fails only if the counter is full, and then the event is pending.
    let _ = kick.write(1);
}

/// A queue on a worker's loop.
struct ServedQueue<M: DmaView, S> {
    queue: Queue<M>,
    memory: M,
    service: S,
    kick: Arc<EventFd>,
    interrupt: Arc<dyn QueueInterrupt>,
    events: Option<Arc<dyn DeviceEvents>>,
    /// The ring must not stay mapped while the queue waits.
    unmap: bool,
    /// The source that the loop watches now.
    watched: Option<Events>,
    /// The source is a file that cannot be watched, because it never blocks.
    always_ready: bool,
    polling: Polling,
    /// The driver broke the queue.
    failed: bool,
}

impl<M: DmaView, S: Service<M>> ServedQueue<M, S> {
    fn turn(&mut self, ready: bool) -> Result<Wait, vring::Error> {
        // Kicks are not needed while the queue is served.
        self.queue.disable_kicks()?;
        for _ in 0..TURNS_TOGETHER {
            let wait = {
                let memory = self.memory.memory();
                self.service.serve(&mut self.queue, &memory, ready)
            };
            if self.queue.needs_interrupt()? {
                self.interrupt.trigger();
            }
            match wait? {
                Wait::Buffers if self.polling.until(|| self.queue.has_new())? => {}
                Wait::Buffers if self.queue.enable_kicks()? => return Ok(Wait::Turn),
                wait => return Ok(wait),
            }
        }
        Ok(Wait::Turn)
    }

    fn run(&mut self, ready: bool, ops: &mut EventOps<'_>) {
        if self.failed {
            return;
        }
        let wait = self.turn(ready || self.always_ready);
        if self.unmap {
            self.queue.unmap();
        }
        let watching = match wait {
            Ok(Wait::Turn) => {
                nudge(&self.kick);
                return;
            }
            Ok(Wait::Source) => self.watch(ops),
            Ok(Wait::Buffers | Wait::Nudge) => self.unwatch(ops),
            Err(_) => Err(()),
        };
        if watching.is_err() {
            let _ = self.unwatch(ops);
            self.fail();
        }
    }

    fn fail(&mut self) {
        self.failed = true;
        if let Some(events) = &self.events {
            events.needs_reset();
        }
    }

    fn watch(&mut self, ops: &mut EventOps<'_>) -> Result<(), ()> {
        let wanted = self
            .service
            .source()
            .map(|(fd, events)| Events::new_raw(fd, events));
        if wanted == self.watched {
            return Ok(());
        }
        self.unwatch(ops)?;
        let Some(source) = wanted else {
            return Ok(());
        };
        match ops.add(source) {
            Ok(()) => self.watched = Some(source),
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EPERM => {
                self.always_ready = true;
                nudge(&self.kick);
            }
            Err(_) => return Err(()),
        }
        Ok(())
    }

    /// Takes the source off the loop: with an empty set of events it would still report a hang-up, for ever.
    fn unwatch(&mut self, ops: &mut EventOps<'_>) -> Result<(), ()> {
        match self.watched.take() {
            Some(source) => ops.remove(source).map_err(|_| ()),
            None => Ok(()),
        }
    }
}

impl<M, S> MutEventSubscriber for ServedQueue<M, S>
where
    M: DmaView,
    S: Service<M>,
{
    fn init(&mut self, ops: &mut EventOps<'_>) {
        match ops.add(Events::new(&*self.kick, EventSet::IN)) {
            Ok(()) => self.run(false, ops),
            Err(_) => self.fail(),
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let kicked = events.fd() == self.kick.as_raw_fd();
        if kicked {
            // Fails only if somebody else was faster; the queue is looked at anyway.
            let _ = self.kick.read();
        }
        self.run(!kicked, ops);
    }
}
