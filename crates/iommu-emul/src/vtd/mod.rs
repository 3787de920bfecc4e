//! The VT-d remapping unit.

mod capability;

pub use capability::{Capabilities, CapabilityError, Config};
