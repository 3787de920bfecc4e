//! PCI: configuration space, topology and the identity of requesters.
//!
//! A [`RootComplex`] is bus 0; the guest reaches it through [`Ecam`] and [`ConfigPorts`], two bus devices. What sits on a bus
//! is a [`PciFunction`]: mostly a [`ConfigSpace`], made by a [`ConfigBuilder`] from BARs and [`Capability`]s. A [`Decoder`]
//! moves the BARs' regions as the guest programs them. [`Msix`] and [`Msi`] turn a device's signals into messages.

mod bar;
mod bdf;
mod builder;
mod capability;
mod config;
mod decode;
mod ecam;
mod function;
mod intx;
mod msi;
mod msix;
mod ports;
mod registers;
mod root_complex;
mod root_port;
pub mod spec;
mod topology;
mod vector;

pub use bar::{Bar, BarKind};
pub use bdf::RequesterId;
pub use builder::{ConfigBuilder, ConfigError, Identity};
pub use capability::{Capability, PortType};
pub use config::{ConfigSpace, ConfigSpaceState, ConfigStateError};
pub use decode::{DecodedRegion, Decoder};
pub use ecam::Ecam;
pub use function::{CapabilityHandler, PciFunction};
pub use intx::{InterruptPin, IntxLines, IntxPin};
pub use msi::Msi;
pub use msix::{Msix, MsixEntryState, MsixState, VectorsError};
pub use ports::ConfigPorts;
pub use root_complex::{RootComplex, RootError};
pub use root_port::RootPort;
pub use topology::{PciBus, TopologyError};
