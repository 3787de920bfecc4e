//! PCI: configuration space, topology and the identity of requesters.

mod bdf;

pub use bdf::RequesterId;
