use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use pio_mmio_bus::interrupt::{IrqLine, MsiRoute};
use pio_mmio_bus::pci::{IntxPin, Msix};

use super::super::isr::IsrLine;
use super::super::spec::Isr;
use super::super::spec::pci::NO_VECTOR;
use super::super::status::Interrupts;

/// The interrupts of a function: a message each, or the pin for all while MSI-X is not enabled (virtio 1.3 §4.1.5.3, §4.1.5.4).
pub(super) struct PciInterrupts {
    pub(super) isr: IsrLine,
    msix: Arc<Msix>,
    routes: Vec<Arc<dyn MsiRoute>>,
    config: Vector,
    queues: Vec<Vector>,
}

/// The pin of a function that has none.
struct NoPin;

impl IrqLine for NoPin {
    fn set_level(&self, _: bool) {}
}

/// A vector register.
struct Vector(AtomicU16);

impl Vector {
    fn new() -> Self {
        Self(AtomicU16::new(NO_VECTOR))
    }

    fn get(&self) -> u16 {
        self.0.load(Ordering::Acquire)
    }
}

impl PciInterrupts {
    /// A virtual function has no pin.
    pub(super) fn new(queues: usize, pin: Option<Arc<IntxPin>>, msix: Arc<Msix>) -> Self {
        let line = pin.map_or_else(|| Arc::new(NoPin) as _, |pin| pin as Arc<dyn IrqLine>);
        Self {
            isr: IsrLine::new(line),
            routes: (0..msix.vectors())
                .filter_map(|vector| msix.route(vector))
                .collect(),
            msix,
            config: Vector::new(),
            queues: (0..queues).map(|_| Vector::new()).collect(),
        }
    }

    /// The vector of configuration changes.
    pub(super) fn config_vector(&self) -> u16 {
        self.config.get()
    }

    /// The vector of a queue; none for a queue that does not exist.
    pub(super) fn queue_vector(&self, queue: u32) -> u16 {
        self.queue(queue).map_or(NO_VECTOR, Vector::get)
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.set(&self.config, vector);
    }

    pub(super) fn set_queue_vector(&self, queue: u32, vector: u16) {
        if let Some(register) = self.queue(queue) {
            self.set(register, vector);
        }
    }

    /// All of the queues' vectors.
    pub(super) fn queue_vectors(&self) -> Vec<u16> {
        self.queues.iter().map(Vector::get).collect()
    }

    /// Forgets all vectors and causes (§4.1.5.1.2.1).
    pub(super) fn reset(&self) {
        for vector in self.queues.iter().chain([&self.config]) {
            vector.0.store(NO_VECTOR, Ordering::Release);
        }
        self.isr.clear(Isr::all());
    }

    /// A vector that does not exist is mapped to nothing, which the driver sees when it reads back.
    fn set(&self, register: &Vector, vector: u16) {
        let exists = usize::from(vector) < self.routes.len();
        let vector = if exists { vector } else { NO_VECTOR };
        register.0.store(vector, Ordering::Release);
    }

    fn queue(&self, queue: u32) -> Option<&Vector> {
        self.queues.get(usize::try_from(queue).ok()?)
    }

    fn raise(&self, vector: &Vector, cause: Isr) {
        if !self.msix.enabled() {
            self.isr.raise(cause);
        } else if let Some(route) = self.routes.get(usize::from(vector.get()))
            && let Err(error) = route.trigger()
        {
            tracing::warn!(%error, "interrupt lost");
        }
    }
}

impl Interrupts for PciInterrupts {
    fn used(&self, queue: u16) {
        if let Some(vector) = self.queue(queue.into()) {
            self.raise(vector, Isr::USED);
        }
    }

    fn config(&self) {
        self.raise(&self.config, Isr::CONFIG);
    }
}
