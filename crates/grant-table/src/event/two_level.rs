//! The two-level ABI: a bit for each port, and a bit for each word of these.

use std::sync::atomic::{AtomicU64, Ordering};

use super::VcpuInfo;
use crate::frame::Frame;
use crate::spec::event::{Port, shared_info};

/// The pending and mask bits of a domain.
#[derive(Clone, Debug)]
pub(super) struct TwoLevel {
    pub(super) shared_info: Frame,
}

impl TwoLevel {
    /// A word of bits, the port's bit in it, and the word's own number.
    fn bit(&self, base: usize, port: Port) -> Option<(&AtomicU64, u64, u64)> {
        let word = usize::try_from(port.0 / 64).ok()?;
        let word = self
            .shared_info
            .u64(base.checked_add(word.checked_mul(8)?)?)?;
        Some((word, 1 << (port.0 % 64), 1 << (port.0 / 64).min(63)))
    }

    /// Sets the pending bit; whether an upcall is due.
    pub(super) fn set_pending(&self, port: Port, vcpu: &VcpuInfo) -> bool {
        let Some((word, bit, _)) = self.bit(shared_info::PENDING, port) else {
            return false;
        };
        word.fetch_or(bit, Ordering::SeqCst) & bit == 0 && self.notify(port, vcpu)
    }

    /// Selects the port's word if the port is not masked; whether an upcall is due.
    fn notify(&self, port: Port, vcpu: &VcpuInfo) -> bool {
        let masked = self.bit(shared_info::MASK, port);
        let Some((word, bit, select)) = masked else {
            return false;
        };
        word.load(Ordering::SeqCst) & bit == 0 && vcpu.select(select)
    }

    /// Clears the mask bit; whether an upcall is due.
    pub(super) fn unmask(&self, port: Port, vcpu: &VcpuInfo) -> bool {
        let Some((word, bit, _)) = self.bit(shared_info::MASK, port) else {
            return false;
        };
        let was_masked = word.fetch_and(!bit, Ordering::SeqCst) & bit != 0;
        was_masked && self.is_pending(port) && self.notify(port, vcpu)
    }

    pub(super) fn is_pending(&self, port: Port) -> bool {
        self.bit(shared_info::PENDING, port)
            .is_some_and(|(word, bit, _)| word.load(Ordering::SeqCst) & bit != 0)
    }

    pub(super) fn clear_pending(&self, port: Port) {
        if let Some((word, bit, _)) = self.bit(shared_info::PENDING, port) {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
    }
}
