//! The network device (Virtio 1.3, §5.1) and its host back-ends.

mod backend;
mod cable;
mod command;
mod control;
mod device;
mod filter;
mod flood;
mod mac;
mod memory;
mod receive;
mod shared;
pub mod spec;
mod statistics;
mod tap;
mod transmit;

pub use backend::{FrameReceiver, FrameSender, NetBackend, NetPort};
pub use cable::{CABLE_FRAMES, Cable, CablePort, CableReceiver, CableSender};
pub use command::{BadCommand, Command, MAX_COMMAND};
pub use device::{Net, NetError};
pub use filter::{RxFilter, RxMode, TABLE_SIZE};
pub use flood::{FloodNet, FloodPort, FloodReceiver, FloodSender};
pub use mac::{MacAddress, ParseMacError};
pub use memory::{MEMORY_PORT_FRAMES, MemoryNet, MemoryPort, MemoryReceiver};
pub use shared::NetState;
pub use statistics::NetStatistics;
pub use tap::{Tap, TapError, TapQueue, TapReceiver};

/// Frames that are shown to the driver with one publication: enough that the cores do not take the ring from each other for each frame,
/// few enough that the driver has something to do meanwhile.
const PUBLISHED_TOGETHER: usize = 32;

/// How often a queue is looked at before it sleeps: some microseconds, as long as it takes to sleep and wake up.
const POLLS: u32 = 256;
