use pio_mmio_bus::pci::{BarKind, RequesterId};

use crate::capability::{CapabilityError, vf_requester};
use crate::spec::sriov::{BARS, MANDATORY_PAGE_SIZES};

/// What the capability says and the guest cannot change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// How many virtual functions there can be, at least 1.
    pub total_vfs: u16,
    /// Distance of the first one's requester ID from the physical function's, at least 1. Numbers above function 7 are found only
    /// where the guest enables ARI forwarding in the port above.
    pub first_vf_offset: u16,
    /// Distance between two, at least 1.
    pub vf_stride: u16,
    /// Their device ID.
    pub vf_device_id: u16,
    /// The page sizes that the guest may choose from, see [`MANDATORY_PAGE_SIZES`], which are the default and must be among them.
    pub supported_page_sizes: u32,
    /// Their BARs.
    pub bars: Vec<VfBarLayout>,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            total_vfs: 1,
            first_vf_offset: 1,
            vf_stride: 1,
            vf_device_id: 0,
            supported_page_sizes: MANDATORY_PAGE_SIZES,
            bars: Vec::new(),
        }
    }
}

/// A BAR of each virtual function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VfBarLayout {
    /// Number of its first register, 0 to 5.
    pub index: usize,
    /// What it decodes; not I/O.
    pub kind: BarKind,
    /// Size in bytes of one virtual function's share, see [`BarKind::allows`]. In the guest's eyes a share is at least as large as the
    /// system page size.
    pub size: u64,
}

/// Why a layout cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// No virtual functions.
    #[error("a physical function needs at least one virtual function")]
    NoVfs,
    /// The requester IDs would not be distinct, or more than there are.
    #[error(transparent)]
    Requesters(#[from] CapabilityError),
    /// A page size that every device must support is missing.
    #[error("supported page sizes {0:#x} lack some of {MANDATORY_PAGE_SIZES:#x}")]
    PageSizes(u32),
    /// A BAR that is I/O, has an impossible size, does not exist or overlaps another.
    #[error("VF BAR {0:?}: no such register, taken, I/O, or no possible size")]
    Bar(VfBarLayout),
}

impl Layout {
    /// Whether a device can be like this.
    pub fn check(&self) -> Result<(), LayoutError> {
        let last = self.total_vfs.checked_sub(1).ok_or(LayoutError::NoVfs)?;
        for index in [0, last] {
            vf_requester(RequesterId(0), self.first_vf_offset, self.vf_stride, index)?;
        }
        if self.supported_page_sizes & MANDATORY_PAGE_SIZES != MANDATORY_PAGE_SIZES {
            return Err(LayoutError::PageSizes(self.supported_page_sizes));
        }
        let mut free = [true; BARS];
        for bar in &self.bars {
            if bar.kind == BarKind::Io || !bar.kind.allows(bar.size) {
                return Err(LayoutError::Bar(*bar));
            }
            for register in 0..bar.kind.registers() {
                let index = bar.index.saturating_add(register);
                match free.get_mut(index) {
                    Some(free) if *free => *free = false,
                    _ => return Err(LayoutError::Bar(*bar)),
                }
            }
        }
        Ok(())
    }
}
