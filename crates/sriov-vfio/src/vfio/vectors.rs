use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pio_mmio_bus::interrupt::{InterruptError, MsiMessage, MsiRoute, MsiRouter};
use vmm_sys_util::eventfd::EventFd;

/// Hands out routes of another router to vectors of MSI or MSI-X, and so comes to know which of them the guest lets through: a route is pointed
/// at a message as long as its vector is enabled and unmasked, and the function may master the bus.
pub(super) struct Vectors<'a> {
    router: &'a dyn MsiRouter,
    routes: Mutex<Vec<Arc<VectorRoute>>>,
    opened: Arc<AtomicBool>,
}

impl<'a> Vectors<'a> {
    /// `opened` is set whenever the guest lets a vector through that it did not.
    pub(super) fn new(router: &'a dyn MsiRouter, opened: &Arc<AtomicBool>) -> Self {
        Self {
            router,
            routes: Mutex::default(),
            opened: Arc::clone(opened),
        }
    }

    fn routes(&self) -> MutexGuard<'_, Vec<Arc<VectorRoute>>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The routes that were handed out, in this order.
    pub(super) fn into_routes(self) -> Vec<Arc<VectorRoute>> {
        std::mem::take(&mut self.routes())
    }
}

impl MsiRouter for Vectors<'_> {
    fn allocate(&self) -> Result<Arc<dyn MsiRoute>, InterruptError> {
        let route = Arc::new(VectorRoute {
            inner: self.router.allocate()?,
            open: AtomicBool::new(false),
            opened: Arc::clone(&self.opened),
        });
        self.routes().push(Arc::clone(&route));
        Ok(route)
    }
}

/// The route of a vector.
pub(super) struct VectorRoute {
    inner: Arc<dyn MsiRoute>,
    open: AtomicBool,
    opened: Arc<AtomicBool>,
}

impl VectorRoute {
    /// Whether the guest lets the vector through.
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }
}

impl MsiRoute for VectorRoute {
    fn eventfd(&self) -> &EventFd {
        self.inner.eventfd()
    }

    fn update(&self, message: Option<MsiMessage>) -> Result<(), InterruptError> {
        self.inner.update(message)?;
        if !self.open.swap(message.is_some(), Ordering::AcqRel) && message.is_some() {
            self.opened.store(true, Ordering::Release);
        }
        Ok(())
    }

    fn trigger(&self) -> Result<(), InterruptError> {
        self.inner.trigger()
    }
}
