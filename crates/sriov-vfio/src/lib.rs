#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod capability;
pub mod emulated;
pub mod spec;
pub mod sysfs;
