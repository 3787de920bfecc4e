//! What each fuzz target runs, as plain functions that stable tests call too.

pub mod net;
pub mod pci;
