//! Virtio devices: the status machine, the transports, the device models and their host back-ends.

pub mod block;
mod config;
pub mod console;
mod device;
mod dma;
pub mod net;
pub mod rng;
mod serve;
pub mod transport;
mod worker;

pub use device::{
    DeviceError, DeviceEvents, DeviceType, QueueInterrupt, QueueResources, VirtioDevice,
};
pub use dma::DmaView;
pub use worker::{Task, Worker, WorkerError};
