//! What a frontend has said about one ring.

use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;
use vring::{Features, PackedPosition, PackedState, QueueConfig, QueueState, SplitState};

use super::memory::MemoryTable;
use crate::device::QueueInterrupt;

/// Where the driver's notifications go. It may change while the ring runs.
#[derive(Default)]
pub(super) struct Call(Mutex<Option<EventFd>>);

impl Call {
    pub(super) fn set(&self, event: Option<EventFd>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = event;
    }
}

impl QueueInterrupt for Call {
    fn trigger(&self) {
        let event = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(event) = &*event {
            // Fails only if the counter is full, and then the event is pending.
            let _ = event.write(1);
        }
    }
}

/// One ring of a device.
pub(super) struct Ring {
    pub(super) size: u16,
    /// Descriptor, driver and device area, in the frontend's address space.
    pub(super) addresses: Option<[u64; 3]>,
    /// Where to start: what SET_VRING_BASE said.
    pub(super) base: u32,
    /// Where it stopped, if it only paused.
    pub(super) state: Option<QueueState>,
    pub(super) kick: Option<Arc<EventFd>>,
    pub(super) call: Arc<Call>,
    pub(super) enabled: bool,
    pub(super) running: bool,
}

impl Ring {
    pub(super) fn new(size: u16) -> Self {
        Self {
            size,
            addresses: None,
            base: 0,
            state: None,
            kick: None,
            call: Arc::default(),
            enabled: false,
            running: false,
        }
    }

    /// The ring's configuration; `None` if there is no memory where it should be.
    pub(super) fn config(&self, memory: &MemoryTable, features: u64) -> Option<QueueConfig> {
        let [desc, avail, used] = self.addresses?;
        Some(QueueConfig {
            size: self.size.into(),
            desc: memory.guest_address(desc)?,
            avail: memory.guest_address(avail)?,
            used: memory.guest_address(used)?,
            features: Features::from_bits_truncate(features),
        })
    }

    /// Where the ring starts, if nothing is in flight.
    ///
    /// A split ring says itself up to where buffers were used: those after that are all processed again. A packed ring does not; and
    /// of the two positions in its base some frontends set only the first.
    pub(super) fn start(&self, memory: &MemoryTable, config: &QueueConfig) -> Option<QueueState> {
        let [b0, b1, _, _] = self.base.to_le_bytes();
        let base = u16::from_le_bytes([b0, b1]);
        if config.features.contains(Features::RING_PACKED) {
            let at = position(base);
            return Some(QueueState::Packed(PackedState {
                next_avail: at,
                next_used: at,
                in_flight: Vec::new(),
            }));
        }
        let used_idx = GuestAddress(config.used.0.checked_add(2)?);
        let used: u16 = memory.memory().read_obj(used_idx).ok()?;
        let used = u16::from_le(used);
        Some(QueueState::Split(SplitState {
            next_avail: used,
            next_used: used,
            in_flight: Vec::new(),
        }))
    }
}

/// A position from its word: the wrap counter is bit 15.
pub(super) fn position(word: u16) -> PackedPosition {
    PackedPosition {
        slot: word & 0x7fff,
        wrap: word & 0x8000 != 0,
    }
}

/// What GET_VRING_BASE says of a ring that stopped. Chains that were popped and given up come again from there.
pub(super) fn base(state: &QueueState) -> u32 {
    match state {
        QueueState::Split(state) => state.next_used.into(),
        QueueState::Packed(state) => {
            let PackedPosition { slot, wrap } = state.next_used;
            let word = u32::from(slot) | if wrap { 0x8000 } else { 0 };
            word << 16 | word
        }
    }
}
