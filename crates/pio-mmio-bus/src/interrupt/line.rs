use std::sync::Arc;

/// An interrupt pin: an input of an interrupt controller as the device sees it.
pub trait IrqLine: Send + Sync {
    /// Drives the line. Levels, not edges: asserting an asserted line changes nothing.
    fn set_level(&self, asserted: bool);

    /// Signals an edge-triggered interrupt: asserts, then deasserts.
    fn pulse(&self) {
        self.set_level(true);
        self.set_level(false);
    }
}

impl<T: IrqLine + ?Sized> IrqLine for Arc<T> {
    fn set_level(&self, asserted: bool) {
        (**self).set_level(asserted);
    }

    fn pulse(&self) {
        (**self).pulse();
    }
}

/// Is told when the guest ends a level-triggered interrupt: the moment at which whoever only knows edges of a line, as VFIO does, deasserts
/// it and looks whether its device still asserts (KVM: resampling).
///
/// Several threads may tell at once. May drive its line.
pub trait EndObserver: Send + Sync {
    /// The interrupt ended. It is sent again afterwards if the line is asserted then.
    fn ended(&self);
}
