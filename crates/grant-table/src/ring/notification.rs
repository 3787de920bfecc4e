//! When an end of a ring is notified: where it goes to sleep while the other end publishes.

use crate::sync::{AtomicU32, Ordering, fence};

/// Makes what was written visible, up to `value`; whether the other end wants to be told.
pub(crate) fn publish(produced: &AtomicU32, event: &AtomicU32, value: u32) -> bool {
    let old = produced.load(Ordering::Relaxed);
    produced.store(value, Ordering::Release);
    fence(Ordering::SeqCst);
    let event = event.load(Ordering::Acquire);
    value.wrapping_sub(event) < value.wrapping_sub(old)
}

/// Asks to be told of the one after `consumed`; whether it is there already.
pub(crate) fn finish(produced: &AtomicU32, event: &AtomicU32, consumed: u32) -> bool {
    if produced.load(Ordering::Acquire) != consumed {
        return true;
    }
    event.store(consumed.wrapping_add(1), Ordering::Release);
    fence(Ordering::SeqCst);
    produced.load(Ordering::Acquire) != consumed
}
