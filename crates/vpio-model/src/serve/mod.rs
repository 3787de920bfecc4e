//! A device that the guests of several processes share.
//!
//! A [`Server`] owns the device, as the kernel's VFIO gives it, and lets the guests take turns by an [`Arbiter`](crate::arbiter::Arbiter);
//! `vpio serve` is one. In the process of each guest a [`Remote`] stands for the device: it is a [`VfioDevice`](sriov_vfio::vfio::VfioDevice), so that
//! what puts a device on a guest's bus puts this one there. An access of a guest whose turn it is not takes as long as the turns of others.
//!
//! The guests share an I/O address space, in which each has its memory at addresses of its own; a model's
//! [`Dma::translate`](crate::engine::Dma::translate) gives those to the device, and no others. A guest's process is trusted with nothing but its
//! guest's memory: what it sends is checked, [bounded](spec), and when it says what makes no sense, or goes away, the device is reset if it
//! had it, and is the next guest's.

mod memory;
mod remote;
mod server;
mod session;
mod socket;
pub mod spec;
mod turn;

pub use memory::MemoryError;
pub use remote::{Remote, RemoteError};
pub use server::{Event, ServeError, Server, Shown};
pub use session::SessionError;
pub use socket::{Connection, Listener};
