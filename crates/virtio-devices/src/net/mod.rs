//! The network device (Virtio 1.3, §5.1) and its host back-ends.

mod backend;
mod control;
mod filter;
mod mac;
mod memory;
pub mod spec;
mod tap;

pub use backend::{NetBackend, NetPort};
pub use control::{BadCommand, Command, MAX_COMMAND};
pub use filter::{RxFilter, RxMode, TABLE_SIZE};
pub use mac::{MacAddress, ParseMacError};
pub use memory::{MEMORY_PORT_FRAMES, MemoryNet, MemoryPort};
pub use tap::{Tap, TapError, TapQueue};
