//! Serving queues on worker loops: what the network, console and entropy devices have in common.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;
use vring::{Queue, QueueState};

use crate::device::{DeviceError, DeviceEvents, QueueInterrupt, QueueResources, start_ring};

use crate::dma::DmaView;
use crate::polling::Polling;
use crate::worker::{Poll, Worker};

/// `VIRTIO_F_ACCESS_PLATFORM` (Virtio 1.3, §6): the ring lies behind an IOMMU, whose invalidations wait for mappings.
const ACCESS_PLATFORM: u64 = 1 << 33;

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

    /// Whether the source has something, as far as is known without asking the operating system.
    fn poll_source(&mut self) -> bool {
        false
    }

    /// Has the source report what it has, before it is waited for.
    ///
    /// # Errors
    /// It failed.
    fn arm_source(&mut self) -> io::Result<()> {
        Ok(())
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

    /// Whether it is worth while to poll the source.
    const POLLS_SOURCE: bool = false;

    /// How often the ring or the source is looked at for more before the queue sleeps, at most.
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
        let unmap = features & ACCESS_PLATFORM != 0;
        let polls = if unmap { 0 } else { S::POLLS };
        let task = worker.add_polled(ServedQueue {
            queue,
            memory,
            service,
            kick,
            interrupt,
            events: self.events().cloned(),
            unmap,
            watched: None,
            always_ready: false,
            waits_for: Wait::Turn,
            awake: false,
            polling: Polling::new(polls),
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
    /// What it needs to go on.
    waits_for: Wait,
    /// It is polled. Kicks are not needed then.
    awake: bool,
    polling: Polling,
    /// The driver broke the queue.
    failed: bool,
}

/// Why a queue cannot be served any more.
struct Failed;

impl From<vring::Error> for Failed {
    fn from(_: vring::Error) -> Self {
        Self
    }
}

impl<M: DmaView, S: Service<M>> ServedQueue<M, S> {
    /// Serves the queue if there may be something to do, as there is if it was `woken`, and has it sleep if that has not been so for a
    /// while. Polling is cheaper than to sleep and be kicked if the driver or the source is about to have more; the while is short
    /// where that has not been so.
    fn step(&mut self, woken: bool, ready: bool, ops: &mut EventOps<'_>) -> Result<(), Failed> {
        if !self.awake {
            self.awake = true;
            self.queue.disable_kicks()?;
        }
        if woken {
            self.serve(ready)?;
        } else if self.poll()? {
            self.polling.found();
            self.serve(ready)?;
        } else {
            self.polling.missed();
        }
        let polled = match self.waits_for {
            Wait::Turn => return Ok(()),
            Wait::Buffers => true,
            Wait::Source => S::POLLS_SOURCE,
            Wait::Nudge => false,
        };
        if polled && !self.polling.is_over() {
            Ok(())
        } else {
            self.sleep(ops)
        }
    }

    /// Whether there is what it waits for.
    fn poll(&mut self) -> Result<bool, Failed> {
        Ok(match self.waits_for {
            Wait::Turn => true,
            Wait::Buffers => self.queue.has_new()?,
            Wait::Source => self.service.poll_source(),
            Wait::Nudge => false,
        })
    }

    fn serve(&mut self, ready: bool) -> Result<(), Failed> {
        let wait = {
            let memory = self.memory.memory();
            self.service.serve(&mut self.queue, &memory, ready)
        };
        if self.queue.needs_interrupt()? {
            self.interrupt.trigger();
        }
        self.waits_for = wait?;
        Ok(())
    }

    /// Leaves it to events to wake the queue up, unless there is something to do.
    fn sleep(&mut self, ops: &mut EventOps<'_>) -> Result<(), Failed> {
        match self.waits_for {
            Wait::Source => {
                self.service.arm_source().map_err(|_| Failed)?;
                self.awake = !self.watch(ops)?;
            }
            Wait::Buffers => {
                self.unwatch(ops)?;
                self.awake = self.queue.enable_kicks()?;
            }
            Wait::Turn | Wait::Nudge => {
                self.unwatch(ops)?;
                self.awake = false;
            }
        }
        if self.awake {
            self.waits_for = Wait::Turn;
            self.queue.disable_kicks()?;
        } else {
            self.polling.give_up();
        }
        Ok(())
    }

    fn run(&mut self, woken: bool, ready: bool, ops: &mut EventOps<'_>) {
        if self.failed {
            return;
        }
        let stepped = self.step(woken, ready || self.always_ready, ops);
        if self.unmap {
            self.queue.unmap();
        }
        if stepped.is_err() {
            let _ = self.unwatch(ops);
            self.fail();
        }
    }

    fn fail(&mut self) {
        self.failed = true;
        self.awake = false;
        if let Some(events) = &self.events {
            events.needs_reset();
        }
    }

    /// Has the loop watch the source. Returns whether it can.
    fn watch(&mut self, ops: &mut EventOps<'_>) -> Result<bool, Failed> {
        let wanted = self
            .service
            .source()
            .map(|(fd, events)| Events::new_raw(fd, events));
        if wanted == self.watched {
            return Ok(true);
        }
        self.unwatch(ops)?;
        let Some(source) = wanted else {
            return Ok(true);
        };
        match ops.add(source) {
            Ok(()) => {
                self.watched = Some(source);
                Ok(true)
            }
            Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EPERM => {
                self.always_ready = true;
                Ok(false)
            }
            Err(_) => Err(Failed),
        }
    }

    /// Takes the source off the loop: with an empty set of events it would still report a hang-up, for ever.
    fn unwatch(&mut self, ops: &mut EventOps<'_>) -> Result<(), Failed> {
        match self.watched.take() {
            Some(source) => ops.remove(source).map_err(|_| Failed),
            None => Ok(()),
        }
    }
}

impl<M, S> Poll for ServedQueue<M, S>
where
    M: DmaView,
    S: Service<M>,
{
    fn poll(&mut self, ops: &mut EventOps<'_>) -> bool {
        if self.awake {
            self.run(false, false, ops);
        }
        self.awake
    }
}

impl<M, S> MutEventSubscriber for ServedQueue<M, S>
where
    M: DmaView,
    S: Service<M>,
{
    fn init(&mut self, ops: &mut EventOps<'_>) {
        match ops.add(Events::new(&*self.kick, EventSet::IN)) {
            Ok(()) => self.run(true, false, ops),
            Err(_) => self.fail(),
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let kicked = events.fd() == self.kick.as_raw_fd();
        if kicked {
            // Fails only if somebody else was faster; the queue is looked at anyway.
            let _ = self.kick.read();
        }
        self.run(true, !kicked, ops);
    }
}
