use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pio_mmio_bus::pci::Follower;
use vm_memory::MmapRegion;

/// How a VMM shows memory to its guest: KVM's memory slots.
pub trait GuestWindows: Send + Sync {
    /// Prepares to show `memory`, of which the window keeps hold. It is not shown yet.
    fn window(&self, memory: MmapRegion) -> io::Result<Box<dyn GuestWindow>>;
}

/// Memory that is shown to the guest or not. While it is not, accesses exit to the VMM.
pub trait GuestWindow: Send + Sync {
    /// Shows the memory at this guest-physical address, in place of where it was, or nowhere. If it is refused the memory is
    /// shown nowhere.
    fn show(&self, at: Option<u64>) -> io::Result<()>;
}

/// The parts of a BAR that the guest reaches without exits, wherever it places the BAR.
pub(super) struct BarWindows {
    /// With their offsets.
    pub(super) parts: Vec<(u64, Box<dyn GuestWindow>)>,
    /// Set when a part could not be shown: its accesses exit, and work.
    pub(super) failed: Arc<AtomicBool>,
}

impl Follower for BarWindows {
    fn follow(&self, base: Option<u64>) {
        for (offset, window) in &self.parts {
            let at = base.and_then(|base| base.checked_add(*offset));
            if window.show(at).is_err() {
                self.failed.store(true, Ordering::Relaxed);
            }
        }
    }
}
