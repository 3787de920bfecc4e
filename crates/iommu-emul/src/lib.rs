#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod dma;
pub mod dmar;
pub mod domain;
pub mod mapping;
pub mod shadow;
pub mod sidecore;
pub mod spec;
pub mod viot;
pub mod vtd;
