use std::error::Error;
use std::sync::Arc;

use pio_mmio_bus::bus::{BusDevice, Doorbell};
use pio_mmio_bus::pci::PciFunction;

/// A virtual function as a [`VfFactory`] makes it.
pub struct VirtualFunction {
    /// What answers its configuration requests: made by
    /// [`ConfigBuilder::virtual_function`](pio_mmio_bus::pci::ConfigBuilder::virtual_function), with
    /// [`VF_ID`](crate::spec::sriov::VF_ID) as vendor and device.
    pub function: Arc<dyn PciFunction>,
    /// Its shares of the VF BARs. A BAR that is missing decodes nothing.
    pub shares: Vec<VfShare>,
}

/// A virtual function's share of a VF BAR.
pub struct VfShare {
    /// Number of the BAR's first register, see [`VfBarLayout::index`](super::VfBarLayout::index).
    pub bar: usize,
    /// What answers accesses. It is dropped with the function.
    pub device: Arc<dyn BusDevice>,
    /// Registers whose writes only wake the device, by their offset in the share.
    pub doorbells: Vec<(u64, Doorbell)>,
}

/// Makes the virtual functions of a physical one, each time that the guest enables them.
pub trait VfFactory: Send + Sync {
    /// Makes virtual function `index` (from 0). It is dropped, after a reset, when the guest disables it.
    ///
    /// Called during a configuration write of the guest, and by as many as the guest asks for, up to
    /// [`Layout::total_vfs`](super::Layout::total_vfs); must not access the physical function. On error the function does not
    /// appear, see [`PhysicalFunction::missing`](super::PhysicalFunction::missing).
    fn create(&self, index: u16) -> Result<VirtualFunction, Box<dyn Error + Send + Sync>>;
}
