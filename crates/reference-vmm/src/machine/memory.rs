use std::sync::Arc;

use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::layout::Layout;

/// The RAM of a machine, as its devices see it.
pub type Memory = Arc<GuestMemoryMmap>;

/// Maps RAM for `layout`: anonymous, private and not populated, so that it costs what the guest touches.
pub(super) fn map(layout: &Layout) -> Result<Memory, vm_memory::mmap::FromRangesError> {
    let ranges: Vec<(GuestAddress, usize)> = layout
        .ram()
        .into_iter()
        .map(|(start, size)| (start, usize::try_from(size).unwrap_or(usize::MAX)))
        .collect();
    GuestMemoryMmap::from_ranges(&ranges).map(Arc::new)
}
