//! Interrupt remapping and posting (§5.1, §5.2).

mod remap;
mod route;

pub(super) use remap::InterruptTable;
pub use route::Remapper;
pub(super) use route::Routes;
