use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use event_manager::{
    EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps,
};

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

struct Thread {
    endpoint: RemoteEndpoint<Subscriber>,
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
        let handle = thread::Builder::new()
            .name(name.to_owned())
            .spawn(
                move || {
                    while !stopped.load(Ordering::Acquire) && manager.run().is_ok() {}
                },
            )?;
        Ok(Self {
            thread: Arc::new(Thread {
                endpoint,
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
        let subscriber: Subscriber = Box::new(Shared(Arc::clone(&state)));
        let id = self.thread.endpoint.call_blocking(
            move |loop_: &mut dyn SubscriberOps<Subscriber = Subscriber>| {
                Ok::<_, event_manager::Error>(loop_.add_subscriber(subscriber))
            },
        )?;
        Ok(Task {
            id,
            state: Some(state),
            worker: self.clone(),
        })
    }
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
        Some(state.lock().unwrap_or_else(PoisonError::into_inner))
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
        // Fails only if the loop is gone, and then nothing runs.
        let _ = self.worker.thread.endpoint.call_blocking(
            move |loop_: &mut dyn SubscriberOps<Subscriber = Subscriber>| {
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
    fn process(&mut self, events: event_manager::Events, ops: &mut event_manager::EventOps<'_>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .process(events, ops);
    }

    fn init(&mut self, ops: &mut event_manager::EventOps<'_>) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .init(ops);
    }
}
