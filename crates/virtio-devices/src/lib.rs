//! Virtio devices: the status machine, the transports, the device models and their host back-ends.

mod device;
pub mod net;
pub mod transport;
mod worker;

pub use device::{
    DeviceError, DeviceEvents, DeviceType, QueueInterrupt, QueueResources, VirtioDevice,
};
pub use worker::{Task, Worker, WorkerError};
