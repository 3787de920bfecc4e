#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]

pub mod capability;
pub mod emulated;
pub mod spec;
pub mod sysfs;
pub mod vfio;
