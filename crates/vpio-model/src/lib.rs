#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod arbiter;
#[cfg(feature = "bus")]
pub mod bus;
pub mod check;
pub mod engine;
pub mod hooks;
pub mod in_process;
pub mod language;
pub mod model;
pub mod models;
#[cfg(feature = "vfio")]
pub mod serve;
#[cfg(feature = "vfio")]
pub mod vfio;
