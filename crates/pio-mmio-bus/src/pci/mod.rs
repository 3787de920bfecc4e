//! PCI: configuration space, topology and the identity of requesters.
//!
//! A [`RootComplex`] is bus 0; the guest reaches it through [`Ecam`] and [`ConfigPorts`], two bus devices. What sits on a bus
//! is a [`PciFunction`]: mostly a [`ConfigSpace`], made by a [`ConfigBuilder`] from BARs and [`Capability`]s. A [`Decoder`]
//! moves the BARs' regions as the guest programs them. [`Msix`] and [`Msi`] turn a device's signals into messages.
//!
//! ```
//! use std::sync::Arc;
//! use pio_mmio_bus::bus::{AddressSpace, Bus, Outcome};
//! use pio_mmio_bus::interrupt::{IrqLine, RecordingLine, RecordingRouter};
//! use pio_mmio_bus::pci::{
//!     Bar, BarKind, Capability, ConfigBuilder, Decoder, Ecam, Identity, Msix, PortType, RequesterId,
//!     RootComplex,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mmio = Bus::new(AddressSpace::Mmio)?;
//! let decoder = Decoder::new(Bus::new(AddressSpace::Pio)?, mmio.clone());
//! let lines = std::array::from_fn(|_| Arc::new(RecordingLine::default()) as Arc<dyn IrqLine>);
//! let root = RootComplex::new(Arc::clone(&decoder), lines)?;
//! mmio.insert(0xe000_0000, Ecam::SIZE, "ecam", Arc::new(Ecam::new(&root)))?;
//!
//! // A function at 00:03.0 whose BAR 0 is its MSI-X table.
//! let router = RecordingRouter::new();
//! let msix = Msix::new(2, &router)?;
//! let function = ConfigBuilder::endpoint(Identity {
//!     vendor: 0x1af4, device: 0x1042, revision: 1, class: [0x01, 0x80, 0x00],
//!     subsystem_vendor: 0x1af4, subsystem: 0x1100,
//! })
//! .bar(0, Bar {
//!     kind: BarKind::Memory32 { prefetchable: false },
//!     size: msix.size(),
//!     name: "msix".into(),
//!     device: Arc::clone(&msix) as _,
//! })
//! .capability(Capability::express(PortType::IntegratedEndpoint))
//! .capability(msix.capability(0, 0))
//! .build(&decoder)?;
//! root.bus().insert(RequesterId::devfn_of(3, 0), function)?;
//!
//! // The guest places BAR 0, turns decoding on, and finds vector 1 masked.
//! let mut guest = mmio.reader();
//! guest.write(0xe001_8010, &0xc000_0000_u32.to_le_bytes());
//! guest.write(0xe001_8004, &2_u16.to_le_bytes());
//! let mut masked = [0; 4];
//! assert!(matches!(guest.read(0xc000_001c, &mut masked), Outcome::Done));
//! assert_eq!(masked, [1, 0, 0, 0]);
//! # Ok(())
//! # }
//! ```

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
pub use decode::{DecodedRegion, Decoder, Follower};
pub use ecam::Ecam;
pub use function::{CapabilityHandler, PciFunction};
pub use intx::{InterruptPin, IntxLines, IntxPin};
pub use msi::Msi;
pub use msix::{Msix, MsixEntryState, MsixState, VectorsError};
pub use ports::ConfigPorts;
pub use root_complex::{RootComplex, RootError};
pub use root_port::RootPort;
pub use topology::{PciBus, TopologyError};
