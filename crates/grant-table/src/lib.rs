#![doc = include_str!("../README.md")]

pub mod block;
pub mod event;
pub mod foreign;
pub mod frame;
pub mod guest;
pub mod hypervisor;
#[cfg(target_os = "linux")]
pub mod linux;
pub mod net;
pub mod ring;
pub mod spec;
mod statuses;
pub mod table;
pub mod xenbus;
pub mod xenstore;

/// The atomics of the files that `tests/loom.rs` builds with loom's.
mod sync {
    pub(crate) use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};
}
