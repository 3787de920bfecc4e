#![doc = include_str!("../README.md")]

pub mod bus;
pub mod interrupt;
pub mod pci;
