#![doc = include_str!("../README.md")]

mod chain;
mod config;
mod cursor;
mod device;
mod driver;
mod error;
mod event;
mod in_flight;
mod indirect;
mod mapping;
mod packed_position;
pub mod spec;
mod state;

pub use chain::Chain;
pub use config::{ConfigError, QueueConfig};
pub use cursor::{Reader, ShortChain, TransferError, Writer};
pub use device::{Queue, StartError};
pub use driver::{AddError, Buffer, DeviceFault, DriverQueue, Used};
pub use error::{Error, Rule};
pub use in_flight::InFlightRegion;
pub use mapping::{Anchor, NoMemory, Slice, View};
pub use spec::Features;
pub use state::{PackedChain, PackedPosition, PackedState, QueueState, SplitState, StateError};
