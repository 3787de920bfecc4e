#![doc = include_str!("../README.md")]

pub mod block;
pub mod event;
pub mod foreign;
pub mod frame;
pub mod guest;
pub mod hypervisor;
#[cfg(target_os = "linux")]
pub mod linux;
pub mod net;
pub mod ring;
pub mod spec;
pub mod table;
pub mod xenbus;
pub mod xenstore;
