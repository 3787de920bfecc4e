use std::error::Error;
use std::sync::Arc;

use pio_mmio_bus::bus::BusDevice;
use pio_mmio_bus::pci::PciFunction;

/// A virtual function as a [`VfFactory`] makes it.
pub struct VirtualFunction {
    /// What answers its configuration requests: made by
    /// [`ConfigBuilder::virtual_function`](pio_mmio_bus::pci::ConfigBuilder::virtual_function), with
    /// [`VF_ID`](crate::spec::sriov::VF_ID) as vendor and device.
    pub function: Arc<dyn PciFunction>,
    /// What answers accesses to its share of the VF BARs, by the number of the BAR's first register. A BAR that is missing decodes
    /// nothing.
    pub bars: Vec<(usize, Arc<dyn BusDevice>)>,
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
