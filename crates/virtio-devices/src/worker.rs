use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use event_manager::{
    EventManager, EventOps, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps,
};

/// How often tasks that are awake are polled before the loop looks for events.
const ROUNDS: usize = 8;

/// Why a worker could not take or return a task.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// The thread could not be created.
    #[error("cannot start worker thread: {0}")]
    Spawn(#[from] io::Error),
    /// The event loop failed or is gone.
    #[error("worker: {0}")]
    Loop(#[from] event_manager::Error),
}

type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// A thread that runs an event-manager loop. Devices put the processing of their queues on it as [`Task`]s.
///
/// Cloning gives another handle to the same thread; several devices may share one worker. The thread ends when the last
/// handle and the last task are dropped.
#[derive(Clone)]
pub struct Worker {
    thread: Arc<Thread>,
}

/// What a worker runs that can find work without an event, as long as it is awake.
pub(crate) trait Poll: MutEventSubscriber {
    /// Works, if it is awake and there is something to do. Returns whether it is still awake.
    fn poll(&mut self, ops: &mut EventOps<'_>) -> bool;
}

type Polled = Arc<Mutex<dyn Poll + Send>>;

/// The tasks of a loop that are polled, which only the loop changes.
type PolledTasks = Arc<Mutex<Vec<(SubscriberId, Polled)>>>;

struct Thread {
    endpoint: RemoteEndpoint<Subscriber>,
    polled: PolledTasks,
    stop: Arc<AtomicBool>,
    handle: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread with this name (of which Linux shows the first 15 bytes).
    ///
    /// # Errors
    /// The operating system refuses the thread, the epoll or the event descriptor.
    pub fn spawn(name: &str) -> Result<Self, WorkerError> {
        let mut manager = EventManager::<Subscriber>::new()?;
        let endpoint = manager.remote_endpoint();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let polled = PolledTasks::default();
        let tasks = Arc::clone(&polled);
        let handle = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let mut timeout = WHEN_ASLEEP;
                while !stopped.load(Ordering::Acquire) && manager.run_with_timeout(timeout).is_ok()
                {
                    timeout = poll_tasks(&mut manager, &lock(&tasks));
                }
            })?;
        Ok(Self {
            thread: Arc::new(Thread {
                endpoint,
                polled,
                stop,
                handle: Some(handle),
            }),
        })
    }

    /// Adds `task` to the loop. Its `init` has run when this returns. Not to be called on the worker itself.
    ///
    /// # Errors
    /// The loop is gone.
    pub fn add<T: MutEventSubscriber + Send + 'static>(
        &self,
        task: T,
    ) -> Result<Task<T>, WorkerError> {
        let state = Arc::new(Mutex::new(task));
        self.insert(state, None)
    }

    /// Like [`add`](Self::add), and the task is polled between events while it is awake.
    pub(crate) fn add_polled<T: Poll + Send + 'static>(
        &self,
        task: T,
    ) -> Result<Task<T>, WorkerError> {
        let state = Arc::new(Mutex::new(task));
        let polled = Arc::clone(&state);
        self.insert(state, Some(polled))
    }

    fn insert<T: MutEventSubscriber + Send + 'static>(
        &self,
        state: Arc<Mutex<T>>,
        polled: Option<Polled>,
    ) -> Result<Task<T>, WorkerError> {
        let subscriber: Subscriber = Box::new(Shared(Arc::clone(&state)));
        let tasks = Arc::clone(&self.thread.polled);
        let id = self.thread.endpoint.call_blocking(
            move |loop_: &mut dyn SubscriberOps<Subscriber = Subscriber>| {
                let id = loop_.add_subscriber(subscriber);
                lock(&tasks).extend(polled.map(|task| (id, task)));
                Ok::<_, event_manager::Error>(id)
            },
        )?;
        Ok(Task {
            id,
            state: Some(state),
            worker: self.clone(),
        })
    }
}

/// How long the loop waits for events, in milliseconds: for ever, or not at all.
const WHEN_ASLEEP: i32 = -1;
const WHEN_AWAKE: i32 = 0;

/// Polls all tasks for some rounds, or until none is awake. Returns how long to wait for events then.
fn poll_tasks(manager: &mut EventManager<Subscriber>, tasks: &[(SubscriberId, Polled)]) -> i32 {
    for _ in 0..ROUNDS {
        let mut awake = false;
        for (id, task) in tasks {
            if let Ok(mut ops) = manager.event_ops(*id) {
                awake |= lock(task).poll(&mut ops);
            }
        }
        if !awake {
            return WHEN_ASLEEP;
        }
    }
    WHEN_AWAKE
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Fails only if the loop is gone already.
        let _ = self.endpoint.kick();
        if let Some(handle) = self.handle.take()
            && handle.thread().id() != thread::current().id()
        {
            // A panic of the loop was reported by the panic hook.
            let _ = handle.join();
        }
    }
}

/// Something that a [`Worker`] runs; removed from the loop when dropped.
pub struct Task<T> {
    id: SubscriberId,
    state: Option<Arc<Mutex<T>>>,
    worker: Worker,
}

impl<T> Task<T> {
    /// Looks at the task between two events.
    pub fn lock(&self) -> Option<MutexGuard<'_, T>> {
        let state = self.state.as_ref()?;
        Some(lock(state))
    }

    /// Takes the task off the loop. It does not run any more when this returns; `None` if its loop died.
    /// Not to be called on the worker itself.
    #[must_use]
    pub fn remove(mut self) -> Option<T> {
        self.detach();
        let state = Arc::into_inner(self.state.take()?)?;
        Some(state.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn detach(&self) {
        let id = self.id;
        let tasks = Arc::clone(&self.worker.thread.polled);
        // Fails only if the loop is gone, and then nothing runs.
        let _ = self.worker.thread.endpoint.call_blocking(
            move |loop_: &mut dyn SubscriberOps<Subscriber = Subscriber>| {
                lock(&tasks).retain(|(other, _)| *other != id);
                loop_.remove_subscriber(id).map(drop)
            },
        );
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if self.state.is_some() {
            self.detach();
        }
    }
}

/// The loop's share of a task.
struct Shared<T>(Arc<Mutex<T>>);

impl<T: MutEventSubscriber> MutEventSubscriber for Shared<T> {
    fn process(&mut self, events: event_manager::Events, ops: &mut EventOps<'_>) {
        lock(&self.0).process(events, ops);
    }

    fn init(&mut self, ops: &mut EventOps<'_>) {
        lock(&self.0).init(ops);
    }
}
