//! Virtio devices: the status machine, the transports, the device models and their host back-ends.

mod device;
pub mod net;
mod ring;
pub mod transport;
mod worker;

pub use device::{
    DeviceError, DeviceEvents, DeviceType, QueueInterrupt, QueueResources, VirtioDevice,
};
pub use ring::{QueueConfig, QueueState};
pub use worker::{Task, Worker, WorkerError};
