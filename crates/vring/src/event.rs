//! Whether a notification is due (virtio 1.3 §2.7.10, §2.8.10): what both sides of both formats decide by. `tests/suppression.rs` explores
//! all interleavings of the protocol with these very functions; it includes this file.

/// Whether the index `event`, whose passing the other side wants to know of, is among the `passed` before `at`.
#[inline]
pub(crate) fn passed_index(event: u16, at: u16, passed: u32) -> bool {
    u32::from(at.wrapping_sub(event).wrapping_sub(1)) < passed
}

/// The same in a packed ring, where positions are numbers below `twice` the queue size: those of the second round follow those of the
/// first.
#[inline]
pub(crate) fn passed_slot(event: u32, at: u32, passed: u32, twice: u32) -> bool {
    // The event is the slot whose use is wanted to be known: passed when `at` is beyond it.
    let beyond = match at.checked_sub(event) {
        Some(beyond) => beyond,
        None => at + twice - event,
    };
    passed >= twice || (beyond != 0 && beyond <= passed)
}
