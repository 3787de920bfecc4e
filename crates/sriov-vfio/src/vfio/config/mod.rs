//! What a guest sees of a device's configuration space.

mod build;
mod policy;
mod registers;

pub use build::ConfigPolicyError;
pub use policy::Policy;
pub use registers::{Effects, MsiPlace, MsixPlace, PhysicalBar, VirtualConfig};
