#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod mapping;
pub mod spec;
pub mod vtd;
