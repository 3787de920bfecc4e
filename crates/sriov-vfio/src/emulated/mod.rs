//! An SR-IOV function of our own: a [`PhysicalFunction`] whose virtual functions appear when the guest enables them.
//!
//! A [`Layout`] says how many there can be and what their BARs are, a [`VfFactory`] makes them. The function goes onto a bus as any
//! other; it answers for its virtual functions there.
//!
//! ```
//! use std::sync::Arc;
//! use pio_mmio_bus::bus::{AddressSpace, Bus};
//! use pio_mmio_bus::interrupt::{IrqLine, RecordingLine};
//! use pio_mmio_bus::pci::{ConfigBuilder, Decoder, Identity, PciFunction, RequesterId, RootComplex};
//! use sriov_vfio::emulated::{Layout, PhysicalFunction, VfFactory, VirtualFunction};
//! use sriov_vfio::spec::sriov::{CONTROL, Control, NUM_VFS, VF_ID};
//!
//! const NIC: Identity = Identity {
//!     vendor: 0x1af4, device: 0x1041, revision: 1, class: [2, 0, 0], subsystem_vendor: 0x1af4, subsystem: 0x1100,
//! };
//! struct Nics(Arc<Decoder>);
//! impl VfFactory for Nics {
//!     fn create(&self, _index: u16) -> Result<VirtualFunction, Box<dyn std::error::Error + Send + Sync>> {
//!         let identity = Identity { vendor: VF_ID, device: VF_ID, ..NIC };
//!         let function = ConfigBuilder::virtual_function(identity).build(&self.0)?;
//!         Ok(VirtualFunction { function, shares: Vec::new() })
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let decoder = Decoder::new(Bus::new(AddressSpace::Pio)?, Bus::new(AddressSpace::Mmio)?);
//! let lines = std::array::from_fn(|_| Arc::new(RecordingLine::default()) as Arc<dyn IrqLine>);
//! let root = RootComplex::new(Arc::clone(&decoder), lines)?;
//! let layout = Layout { total_vfs: 4, first_vf_offset: 8, vf_stride: 1, vf_device_id: 0x1041, ..Layout::default() };
//! let nics = Box::new(Nics(Arc::clone(&decoder)));
//! let physical = PhysicalFunction::new(ConfigBuilder::endpoint(NIC), layout, nics, &decoder)?;
//! root.bus().insert(RequesterId::devfn_of(2, 0), physical.clone())?;
//!
//! // The guest wants two: they are at 00:03.0 and 00:03.1.
//! let id = RequesterId::new(0, RequesterId::devfn_of(2, 0));
//! let sriov = 0x108;
//! root.write_config(id, sriov + u16::try_from(NUM_VFS)?, &2_u16.to_le_bytes());
//! root.write_config(id, sriov + u16::try_from(CONTROL)?, &Control::VF_ENABLE.bits().to_le_bytes());
//! assert_eq!(physical.virtual_functions().len(), 2);
//! assert!(root.bus().find(RequesterId::new(0, RequesterId::devfn_of(3, 1))).is_some());
//! # Ok(())
//! # }
//! ```

mod factory;
mod layout;
mod physical;
mod registers;

pub use factory::{VfFactory, VfShare, VirtualFunction};
pub use layout::{Layout, LayoutError, VfBarLayout};
pub use physical::{PhysicalError, PhysicalFunction};
