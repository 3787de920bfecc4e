use std::sync::Arc;

use crate::interrupt::{InterruptError, MsiMessage, MsiRoute, MsiRouter};

/// One vector of MSI or MSI-X: a route that is connected only while the vector may be delivered.
///
/// The device signals the route's eventfd and knows nothing of masks. While the route is unconnected the signals stay in
/// the eventfd: they are the pending bit.
pub(super) struct Vector {
    route: Arc<dyn MsiRoute>,
    connected: Option<MsiMessage>,
    pending: bool,
}

impl Vector {
    pub(super) fn new(router: &dyn MsiRouter) -> Result<Self, InterruptError> {
        Ok(Self {
            route: router.allocate()?,
            connected: None,
            pending: false,
        })
    }

    pub(super) fn route(&self) -> &Arc<dyn MsiRoute> {
        &self.route
    }

    /// Connects the vector, delivering what is pending, or disconnects it. A refused message leaves it unconnected and
    /// pending: the guest may point it elsewhere.
    pub(super) fn connect(&mut self, message: Option<MsiMessage>) {
        if message == self.connected {
            return;
        }
        // Before the route is connected: afterwards the signals belong to whoever watches the eventfd.
        let pending = message.is_some() && self.pending();
        self.connected = match self.route.update(message) {
            Ok(()) => message,
            Err(_) => None,
        };
        if self.connected.is_some() {
            self.pending = pending && self.route.trigger().is_err();
        } else if message.is_some() {
            // A refused update may have left the former message in place. Nothing more can be done if this fails, too.
            let _ = self.route.update(None);
        }
    }

    /// Whether the vector was signalled and could not be delivered yet.
    pub(super) fn pending(&mut self) -> bool {
        if self.connected.is_none() && self.route.eventfd().read().is_ok() {
            self.pending = true;
        }
        self.pending
    }

    pub(super) fn set_pending(&mut self, pending: bool) {
        self.pending = pending;
    }
}
