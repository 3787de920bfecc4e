//! Where the guest and the hypervisor race for an entry of version 2: its status lies apart from its header.

use crate::sync::{AtomicU16, AtomicU32, Ordering, fence};

/// The guest ends a grant: the status that it has then. Where that is 0 nobody uses the frame, and nobody will.
pub(crate) fn end(header: &AtomicU32, status: &AtomicU16) -> u16 {
    header.store(0, Ordering::Relaxed);
    fence(Ordering::SeqCst);
    status.load(Ordering::Acquire)
}

/// The hypervisor marks an entry as used: its header, which may have changed meanwhile. Then the marks are to go.
pub(crate) fn mark(header: &AtomicU32, status: &AtomicU16, marks: u16) -> u32 {
    status.fetch_or(marks, Ordering::SeqCst);
    fence(Ordering::SeqCst);
    header.load(Ordering::Acquire)
}

/// Takes marks away after the last use of the frame.
pub(crate) fn unmark(status: &AtomicU16, marks: u16) {
    status.fetch_and(!marks, Ordering::Release);
}
