//! The two address spaces of a machine and the regions in them.

mod device;

pub use device::{AccessError, BusDevice};
