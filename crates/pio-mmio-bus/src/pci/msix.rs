use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::RequesterId;
use super::capability::Capability;
use super::function::CapabilityHandler;
use super::registers::within;
use super::spec::capability_id;
use super::spec::msix::{
    CONTROL, Control, ENTRY_MASKED, ENTRY_SIZE, LENGTH, MAX_VECTORS, PBA, TABLE,
};
use super::vector::Vector;
use crate::bus::{AccessError, BusDevice};
use crate::interrupt::{InterruptError, MsiMessage, MsiRoute, MsiRouter};

/// Why MSI or MSI-X could not be set up or restored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VectorsError {
    /// A function cannot have this many vectors.
    #[error("{count} vectors, must be 1 to {limit}")]
    Count {
        /// What was asked for.
        count: usize,
        /// The most there can be.
        limit: usize,
    },
    /// The saved state is of a function with another number of vectors.
    #[error("state of {saved} vectors for a function of {expected}")]
    State {
        /// Vectors in the state.
        saved: usize,
        /// Vectors of the function.
        expected: usize,
    },
    /// No route for a vector.
    #[error("vector {vector}: {source}")]
    Route {
        /// Which vector.
        vector: u16,
        /// Why.
        source: InterruptError,
    },
}

/// MSI-X of a function: the table, the pending bit array, and a live route for each vector (PCIe §7.7.2, §6.1.4).
///
/// A [`BusDevice`] for a BAR, or for a part of one: the table is at offset 0, the pending bits at
/// [`pba_offset`](Self::pba_offset). A device takes its [`route`](Self::route)s once and signals them at any time. What it
/// signals while the guest has the vector masked, or the function may not master the bus, is pending and delivered afterwards.
pub struct Msix {
    state: Mutex<State>,
    /// As `State::control` says; read by devices at each interrupt.
    enabled: AtomicBool,
    count: u16,
}

struct State {
    control: Control,
    bus_master: bool,
    requester: RequesterId,
    entries: Vec<Entry>,
}

struct Entry {
    address: u64,
    data: u32,
    masked: bool,
    vector: Vector,
}

/// The table and the pending bits; enable and function mask are in the configuration space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// One for each vector.
    pub entries: Vec<MsixEntryState>,
}

/// An entry of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixEntryState {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Mask bit.
    pub masked: bool,
    /// Pending bit.
    pub pending: bool,
}

impl Msix {
    /// MSI-X with `vectors` (1 to 2048) routes of `router`, disabled and masked.
    pub fn new(vectors: u16, router: &dyn MsiRouter) -> Result<Arc<Self>, VectorsError> {
        if vectors == 0 || vectors > MAX_VECTORS {
            return Err(VectorsError::Count {
                count: vectors.into(),
                limit: MAX_VECTORS.into(),
            });
        }
        let entries = (0..vectors)
            .map(|vector| match Vector::new(router) {
                Ok(vector) => Ok(Entry {
                    address: 0,
                    data: 0,
                    masked: true,
                    vector,
                }),
                Err(source) => Err(VectorsError::Route { vector, source }),
            })
            .collect::<Result<_, _>>()?;
        Ok(Arc::new(Self {
            state: Mutex::new(State {
                control: Control::empty(),
                bus_master: false,
                requester: RequesterId::default(),
                entries,
            }),
            enabled: AtomicBool::new(false),
            count: vectors,
        }))
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        self.count
    }

    /// Offset of the pending bit array from the start of the table, in bytes.
    pub fn pba_offset(&self) -> u64 {
        ENTRY_SIZE * u64::from(self.count)
    }

    /// Bytes that table and pending bits need, rounded up to the size of a BAR of their own (at least 4 KiB, PCIe §7.7.2).
    pub fn size(&self) -> u64 {
        let pending = u64::from(self.count).div_ceil(64) * 8;
        (self.pba_offset() + pending)
            .next_power_of_two()
            .max(0x1000)
    }

    /// The capability that says that the table is `offset` bytes (a multiple of 8) into the BAR number `bar`.
    pub fn capability(self: &Arc<Self>, bar: u8, offset: u32) -> Capability {
        let place = |offset: u64| {
            let offset = u32::try_from(offset).unwrap_or(u32::MAX);
            (offset & !7 | u32::from(bar & 7)).to_le_bytes()
        };
        let control = Control::FUNCTION_MASK | Control::ENABLE;
        Capability::standard(capability_id::MSIX, LENGTH)
            .value(CONTROL, &(self.count - 1).to_le_bytes())
            .writable(CONTROL, &control.bits().to_le_bytes())
            .value(TABLE, &place(offset.into()))
            .value(PBA, &place(u64::from(offset) + self.pba_offset()))
            .handler(Arc::clone(self) as Arc<dyn CapabilityHandler>)
    }

    /// The route of `vector`, for the device to signal. `None` if there is no such vector.
    pub fn route(&self, vector: u16) -> Option<Arc<dyn MsiRoute>> {
        let state = self.lock();
        let entry = state.entries.get(usize::from(vector))?;
        Some(Arc::clone(entry.vector.route()))
    }

    /// Whether the guest enabled MSI-X, so that the function must not use INTx (PCIe §6.1.4.3).
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Saves the table and the pending bits.
    pub fn save(&self) -> MsixState {
        let mut state = self.lock();
        let entries = state
            .entries
            .iter_mut()
            .map(|entry| {
                let pending = entry.vector.pending();
                let Entry {
                    address,
                    data,
                    masked,
                    vector: _,
                } = *entry;
                MsixEntryState {
                    address,
                    data,
                    masked,
                    pending,
                }
            })
            .collect();
        MsixState { entries }
    }

    /// Takes over a saved table and pending bits, and delivers what is pending and not masked.
    pub fn restore(&self, saved: &MsixState) -> Result<(), VectorsError> {
        let MsixState { entries } = saved;
        let mut state = self.lock();
        if entries.len() != state.entries.len() {
            return Err(VectorsError::State {
                saved: entries.len(),
                expected: state.entries.len(),
            });
        }
        for (entry, saved) in state.entries.iter_mut().zip(entries) {
            let MsixEntryState {
                address,
                data,
                masked,
                pending,
            } = *saved;
            entry.vector.connect(None);
            entry.vector.set_pending(pending);
            entry.address = address & !3;
            entry.data = data;
            entry.masked = masked;
        }
        state.connect(0..usize::from(self.count));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Brings the routes of some vectors in line with the table.
    fn connect(&mut self, vectors: Range<usize>) {
        let open = self.bus_master
            && self.control.contains(Control::ENABLE)
            && !self.control.contains(Control::FUNCTION_MASK);
        let requester = self.requester;
        for entry in self.entries.get_mut(vectors).into_iter().flatten() {
            let message = (open && !entry.masked).then_some(MsiMessage {
                requester,
                address: entry.address,
                data: entry.data,
            });
            entry.vector.connect(message);
        }
    }

    fn read_word(&mut self, pba: u64, offset: u64) -> u32 {
        if offset >= pba {
            let first = usize::try_from(offset - pba).unwrap_or(usize::MAX);
            let vectors = self.entries.iter_mut().skip(first.saturating_mul(8));
            return vectors.take(32).enumerate().fold(0, |bits, (bit, entry)| {
                bits | u32::from(entry.vector.pending()) << bit
            });
        }
        let Some(entry) = self.entry(offset) else {
            return 0;
        };
        match offset % ENTRY_SIZE {
            0 => low(entry.address),
            4 => low(entry.address >> 32),
            8 => entry.data,
            _ => u32::from(entry.masked),
        }
    }

    fn write_word(&mut self, offset: u64, value: u32) {
        let Some(entry) = self.entry(offset) else {
            return;
        };
        match offset % ENTRY_SIZE {
            0 => entry.address = entry.address & !0xffff_ffff | u64::from(value & !3),
            4 => entry.address = entry.address & 0xffff_ffff | u64::from(value) << 32,
            8 => entry.data = value,
            _ => entry.masked = value & ENTRY_MASKED != 0,
        }
    }

    fn entry(&mut self, offset: u64) -> Option<&mut Entry> {
        self.entries
            .get_mut(usize::try_from(offset / ENTRY_SIZE).ok()?)
    }
}

fn low(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// Only aligned accesses of 4 and 8 bytes are defined (PCIe §6.1.4.2).
fn check(offset: u64, width: usize) -> Result<(), AccessError> {
    match width {
        4 if offset.is_multiple_of(4) => Ok(()),
        8 if offset.is_multiple_of(8) => Ok(()),
        _ => Err(AccessError::Width { offset, width }),
    }
}

impl BusDevice for Msix {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        check(offset, data.len())?;
        let mut state = self.lock();
        for (word, at) in data.chunks_exact_mut(4).zip([offset, offset | 4]) {
            word.copy_from_slice(&state.read_word(self.pba_offset(), at).to_le_bytes());
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        check(offset, data.len())?;
        let mut state = self.lock();
        for (word, at) in data.as_chunks().0.iter().zip([offset, offset | 4]) {
            state.write_word(at, u32::from_le_bytes(*word));
        }
        if let Ok(index) = usize::try_from(offset / ENTRY_SIZE) {
            state.connect(index..index.saturating_add(1));
        }
        Ok(())
    }
}

impl CapabilityHandler for Msix {
    fn written(&self, registers: &[u8], range: Range<usize>) {
        if within(&range, &(CONTROL..CONTROL + 2)).is_none() {
            return;
        }
        let Some(bytes) = registers.get(CONTROL..).and_then(|r| r.first_chunk()) else {
            return;
        };
        let mut state = self.lock();
        state.control = Control::from_bits_truncate(u16::from_le_bytes(*bytes));
        self.enabled
            .store(state.control.contains(Control::ENABLE), Ordering::Release);
        state.connect(0..usize::from(self.count));
    }

    fn set_bus_master(&self, enabled: bool) {
        let mut state = self.lock();
        state.bus_master = enabled;
        state.connect(0..usize::from(self.count));
    }

    fn set_requester(&self, requester: RequesterId) {
        let mut state = self.lock();
        state.requester = requester;
        state.connect(0..usize::from(self.count));
    }

    fn reset(&self) {
        let mut state = self.lock();
        state.control = Control::empty();
        self.enabled.store(false, Ordering::Release);
        for entry in &mut state.entries {
            entry.vector.connect(None);
            // What the device signalled before the reset is forgotten with it.
            entry.vector.pending();
            entry.vector.set_pending(false);
            entry.address = 0;
            entry.data = 0;
            entry.masked = true;
        }
    }
}
