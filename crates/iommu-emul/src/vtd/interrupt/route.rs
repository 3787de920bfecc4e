use std::{
    fmt,
    sync::{Arc, Mutex, Weak},
};

use pio_mmio_bus::interrupt::{InterruptError, MsiMessage, MsiRoute, MsiRouter, MsiSink};
use vmm_sys_util::eventfd::EventFd;

use super::remap::{Remapped, index};
use crate::{
    spec::invalidation::InterruptScope,
    vtd::{PhysicalMemory, Unit, unit::lock},
};

/// Interrupt remapping as devices see it: they send messages and allocate routes here instead of at the interrupt controller's
/// router.
///
/// A route keeps what its message was remapped to, as an entry of the interrupt entry cache would. Invalidating that cache resolves
/// the routes again before the guest learns that it is complete. A route whose entry is of the posted format is not connected to
/// its eventfd: it posts when the device calls [`MsiRoute::trigger`], and a signal from elsewhere is lost.
pub struct Remapper<M: PhysicalMemory> {
    unit: Arc<Unit<M>>,
    router: Arc<dyn MsiRouter>,
}

impl<M: PhysicalMemory> Remapper<M> {
    /// Puts `unit` before `router`.
    pub fn new(unit: Arc<Unit<M>>, router: Arc<dyn MsiRouter>) -> Self {
        Self { unit, router }
    }
}

impl<M: PhysicalMemory> fmt::Debug for Remapper<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remapper")
            .field("unit", &self.unit)
            .finish_non_exhaustive()
    }
}

impl<M: PhysicalMemory> MsiSink for Remapper<M> {
    fn send(&self, message: MsiMessage) -> Result<(), InterruptError> {
        self.unit.deliver(message)
    }
}

impl<M: PhysicalMemory> MsiRouter for Remapper<M> {
    fn allocate(&self) -> Result<Arc<dyn MsiRoute>, InterruptError> {
        let route = Arc::new(Route {
            unit: Arc::clone(&self.unit),
            inner: self.router.allocate()?,
            target: Mutex::default(),
        });
        self.unit
            .routes
            .add(Arc::downgrade(&route) as Weak<dyn Live>);
        Ok(route)
    }
}

/// The live routes of a unit.
#[derive(Default)]
pub(in crate::vtd) struct Routes(Mutex<Vec<Weak<dyn Live>>>);

/// A route that can be resolved again.
trait Live: Send + Sync {
    /// Resolves the route if `scope` covers its entry; no scope covers every route.
    fn resolve(&self, scope: Option<InterruptScope>);
}

impl Routes {
    fn add(&self, route: Weak<dyn Live>) {
        let mut routes = lock(&self.0);
        routes.retain(|route| route.strong_count() > 0);
        routes.push(route);
    }

    /// Resolves the routes whose entries `scope` covers, or all.
    pub fn resolve(&self, scope: Option<InterruptScope>) {
        let routes: Vec<_> = lock(&self.0).iter().filter_map(Weak::upgrade).collect();
        for route in routes {
            route.resolve(scope);
        }
    }
}

struct Route<M: PhysicalMemory> {
    unit: Arc<Unit<M>>,
    inner: Arc<dyn MsiRoute>,
    target: Mutex<Target>,
}

#[derive(Default)]
struct Target {
    message: Option<MsiMessage>,
    /// The inner route is connected to what `message` was remapped to.
    connected: bool,
}

impl<M: PhysicalMemory> Route<M> {
    fn connect(&self, target: &mut Target) -> Result<(), InterruptError> {
        let message = match target.message.map(|message| self.unit.remap(&message)) {
            Some(Ok(Ok(Remapped::Message(message)))) => Some(message),
            // Blocked, posted or unconnected: `trigger` knows.
            _ => None,
        };
        target.connected = false;
        self.inner.update(message)?;
        target.connected = message.is_some();
        Ok(())
    }
}

impl<M: PhysicalMemory> Live for Route<M> {
    fn resolve(&self, scope: Option<InterruptScope>) {
        let mut target = lock(&self.target);
        let covered = target.message.is_some_and(|message| {
            scope.is_none_or(|scope| index(&message).is_some_and(|index| scope.covers(index)))
        });
        if covered {
            // What the controller refuses stays unconnected, and `trigger` tries again.
            let _refused = self.connect(&mut target);
        }
    }
}

impl<M: PhysicalMemory> MsiRoute for Route<M> {
    fn eventfd(&self) -> &EventFd {
        self.inner.eventfd()
    }

    fn update(&self, message: Option<MsiMessage>) -> Result<(), InterruptError> {
        let mut target = lock(&self.target);
        target.message = message;
        self.connect(&mut target)
    }

    fn trigger(&self) -> Result<(), InterruptError> {
        let target = lock(&self.target);
        match target.message {
            _ if target.connected => self.inner.trigger(),
            Some(message) => {
                drop(target);
                self.unit.deliver(message)
            }
            None => Ok(()),
        }
    }
}
