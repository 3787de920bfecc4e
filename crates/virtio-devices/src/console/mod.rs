//! The console device (Virtio 1.3, §5.3).

mod control;
mod device;
mod input;
mod output;
mod port;
pub mod spec;

pub use device::{Console, ConsoleError, ConsoleState, MAX_NAME, MAX_PORTS};
pub use port::{ConsoleInput, ConsoleOutput, Notices, Port, PortState};
