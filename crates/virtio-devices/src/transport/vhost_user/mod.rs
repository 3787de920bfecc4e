//! vhost-user: a device in one process, its driver's transport in another (the protocol is defined by `docs/interop/vhost-user.rst`
//! of QEMU).
//!
//! [`VhostUserBackend`] is the side that has the device: it serves any [`VirtioDevice`](crate::VirtioDevice) to a frontend at the
//! other end of a socket. [`VhostUserFrontend`] is the side that has the driver: a device for any transport, which some backend serves.
//!
//! The frontend owns all that it sends: memory, file descriptors, sizes and addresses are checked before they are used, and a message
//! that cannot be obeyed ends the connection. Two things cannot be checked: a frontend that shrinks a file which it has
//! shared takes memory away from under the backend, which the operating system answers with a signal; and one that empties its own
//! event descriptors may hold up the worker that serves its own device. So do not serve frontends that distrust each other
//! from one process.

mod backend;
mod dirty_log;
mod event;
mod frontend;
mod in_flight;
mod memory;
mod ring;

pub use backend::{VhostUserBackend, VhostUserError};
pub use dirty_log::{DirtyLog, DirtyLogSlice};
pub use frontend::{FrontendError, FrontendOptions, VhostUserFrontend};
pub use memory::{MemoryError, SharedMemory};
