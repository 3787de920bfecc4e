use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{InterruptError, IrqLine, MsiMessage, MsiRoute, MsiRouter, MsiSink};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line that remembers, for tests and fuzzers.
#[derive(Debug, Default)]
pub struct RecordingLine(Mutex<(bool, usize)>);

impl RecordingLine {
    /// Whether the line is asserted.
    pub fn asserted(&self) -> bool {
        lock(&self.0).0
    }

    /// How often the line rose since the last call.
    pub fn take_edges(&self) -> usize {
        std::mem::take(&mut lock(&self.0).1)
    }
}

impl IrqLine for RecordingLine {
    fn set_level(&self, asserted: bool) {
        let (level, edges) = &mut *lock(&self.0);
        *edges += usize::from(asserted && !*level);
        *level = asserted;
    }
}

/// A sink that remembers, for tests and fuzzers.
#[derive(Debug, Default)]
pub struct RecordingSink(Mutex<Vec<MsiMessage>>);

impl RecordingSink {
    /// The messages since the last call, in order.
    pub fn take(&self) -> Vec<MsiMessage> {
        std::mem::take(&mut lock(&self.0))
    }
}

impl MsiSink for RecordingSink {
    fn send(&self, message: MsiMessage) -> Result<(), InterruptError> {
        lock(&self.0).push(message);
        Ok(())
    }
}

/// A router whose routes remember what they deliver, for tests and fuzzers.
///
/// As behind an irqfd, signals between two looks at a route are one message, and a signal that finds the route unconnected waits
/// until it is connected.
#[derive(Debug, Default)]
pub struct RecordingRouter {
    delivered: Arc<RecordingSink>,
    routes: Mutex<Vec<Weak<RecordingRoute>>>,
    limit: Option<usize>,
}

#[derive(Debug)]
struct RecordingRoute {
    eventfd: EventFd,
    message: Mutex<Option<MsiMessage>>,
    delivered: Arc<RecordingSink>,
}

impl RecordingRouter {
    /// A router without limit.
    pub fn new() -> Self {
        Self::default()
    }

    /// A router that has no more than `limit` routes at a time.
    pub fn with_limit(limit: usize) -> Self {
        Self {
            limit: Some(limit),
            ..Self::default()
        }
    }

    /// The messages delivered since the last call: by route in order of allocation, and in order of time for each.
    pub fn take(&self) -> Vec<MsiMessage> {
        for route in lock(&self.routes).iter().filter_map(Weak::upgrade) {
            route.deliver(*lock(&route.message));
        }
        self.delivered.take()
    }
}

impl RecordingRoute {
    fn deliver(&self, message: Option<MsiMessage>) {
        if let Some(message) = message
            && self.eventfd.read().is_ok()
        {
            lock(&self.delivered.0).push(message);
        }
    }
}

impl MsiRoute for RecordingRoute {
    fn eventfd(&self) -> &EventFd {
        &self.eventfd
    }

    fn update(&self, message: Option<MsiMessage>) -> Result<(), InterruptError> {
        let mut current = lock(&self.message);
        self.deliver(*current);
        *current = message;
        Ok(())
    }
}

impl MsiRouter for RecordingRouter {
    fn allocate(&self) -> Result<Arc<dyn MsiRoute>, InterruptError> {
        let mut routes = lock(&self.routes);
        routes.retain(|route| route.strong_count() != 0);
        if let Some(limit) = self.limit.filter(|&limit| routes.len() >= limit) {
            return Err(InterruptError::NoRoute { limit });
        }
        let route = Arc::new(RecordingRoute {
            eventfd: EventFd::new(EFD_NONBLOCK)?,
            message: Mutex::new(None),
            delivered: Arc::clone(&self.delivered),
        });
        routes.push(Arc::downgrade(&route));
        Ok(route)
    }
}
