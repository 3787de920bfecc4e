//! Virtual processors: what they report about themselves, the state they start in, and the loop that runs them.

pub mod cpuid;
mod exits;
mod run;
mod start;

pub use exits::{ExitCounts, ExitKind};
pub use run::{Buses, Finished, Runner, VcpuThread};
pub use start::{StartError, prepare};
