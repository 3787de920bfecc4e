//! The kernel's VFIO, by groups and containers of type 1 (v2).
//!
//! Not over vfio-ioctls: its groups are its own, and so is the name by which it opens a function, while the reset of a slot takes the descriptors of
//! groups, and a VF token is part of that name. What it does not say either is when an access or a reset failed, or that the host has fewer vectors
//! than were asked for.

mod container;
mod function;
mod groups;
mod ioctls;
mod migration;
mod refusal;

pub use container::Container;
pub use groups::Groups;
