#![doc = include_str!("../README.md")]

pub mod block;
mod config;
pub mod console;
mod device;
mod dma;
#[cfg(feature = "iommu")]
pub mod iommu;
pub mod net;
mod polling;
pub mod rng;
mod serve;
pub mod transport;
mod worker;

pub use device::{
    DeviceError, DeviceEvents, DeviceState, DeviceStateError, DeviceType, QueueInterrupt,
    QueueResources, VirtioDevice,
};
pub use dma::DmaView;
pub use worker::{Task, Worker, WorkerError};
