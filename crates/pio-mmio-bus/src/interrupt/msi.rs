use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::pci::RequesterId;

/// A message-signalled interrupt: a DMA write by `requester` of `data` to `address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// Who sends it. An interrupt remapper validates this (VT-d §5.1.4, source-id verification).
    pub requester: RequesterId,
    /// The message address; on x86 in the window `0xFEEx_xxxx` (Intel SDM vol. 3, §11.11.1).
    pub address: u64,
    /// The message data (Intel SDM vol. 3, §11.11.2).
    pub data: u32,
}

/// Why an interrupt could not be delivered or routed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InterruptError {
    /// A remapper or the controller refused the message.
    #[error("message {0:x?} was blocked")]
    Blocked(MsiMessage),
    /// No more routes: the controller's table is full.
    #[error("no interrupt route left, limit {limit}")]
    NoRoute {
        /// How many routes exist.
        limit: usize,
    },
    /// The operating system refused.
    #[error("interrupt: {0}")]
    Io(#[from] std::io::Error),
}

/// Takes one-shot messages.
pub trait MsiSink: Send + Sync {
    /// Delivers `message` once.
    fn send(&self, message: MsiMessage) -> Result<(), InterruptError>;
}

impl<T: MsiSink + ?Sized> MsiSink for Arc<T> {
    fn send(&self, message: MsiMessage) -> Result<(), InterruptError> {
        (**self).send(message)
    }
}

/// A live route: an eventfd that delivers a message each time it is signalled.
///
/// A device keeps one per vector. Whoever implements it may re-resolve the message later, for example when the guest
/// changes an interrupt-remapping entry, without the device taking part.
pub trait MsiRoute: Send + Sync {
    /// The eventfd to signal, which does not block; a hypervisor may watch it (irqfd), so that no thread is woken.
    fn eventfd(&self) -> &EventFd;

    /// Points the route at another message; `None` leaves it unconnected.
    ///
    /// While it is unconnected nobody but its holder reads the eventfd, so that signals stay there: they are the pending bit of
    /// a masked vector. A signal that is there when the route is connected is delivered, as irqfd does. On error the route is as
    /// before.
    fn update(&self, message: Option<MsiMessage>) -> Result<(), InterruptError>;

    /// Signals the route.
    fn trigger(&self) -> Result<(), InterruptError> {
        self.eventfd().write(1).map_err(InterruptError::from)
    }
}

/// Hands out routes.
pub trait MsiRouter: Send + Sync {
    /// Allocates a route that is not connected to a message yet. Dropping it frees it.
    fn allocate(&self) -> Result<Arc<dyn MsiRoute>, InterruptError>;
}

impl<T: MsiRouter + ?Sized> MsiRouter for Arc<T> {
    fn allocate(&self) -> Result<Arc<dyn MsiRoute>, InterruptError> {
        (**self).allocate()
    }
}
