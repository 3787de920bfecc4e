#![doc = include_str!("../README.md")]

pub mod event;
pub mod frame;
pub mod guest;
pub mod hypervisor;
pub mod spec;
pub mod table;
