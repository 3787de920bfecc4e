#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod dmar;
pub mod mapping;
pub mod shadow;
pub mod sidecore;
pub mod spec;
pub mod vtd;
