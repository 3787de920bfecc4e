use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::RequesterId;
use super::capability::Capability;
use super::function::CapabilityHandler;
use super::msix::VectorsError;
use super::registers::within;
use super::spec::capability_id;
use super::spec::msi::{
    ADDRESS, ADDRESS_UPPER, CONTROL, Control, DATA, LENGTH, MASK, MAX_VECTORS, PENDING,
};
use super::vector::Vector;
use crate::interrupt::{MsiMessage, MsiRoute, MsiRouter};

/// MSI of a function, with 64-bit address and a mask bit for each vector (PCIe §7.7.1, §6.1.4).
///
/// All its registers are in the configuration space; this holds the routes and the pending bits. Signals of a masked or
/// disabled vector are kept, as with [`Msix`](super::Msix).
pub struct Msi {
    state: Mutex<State>,
    count: u8,
}

struct State {
    bus_master: bool,
    requester: RequesterId,
    registers: [u8; LENGTH],
    vectors: Vec<Vector>,
}

impl Msi {
    /// MSI with `vectors` (1, 2, 4, 8, 16 or 32) routes of `router`.
    pub fn new(vectors: u8, router: &dyn MsiRouter) -> Result<Arc<Self>, VectorsError> {
        if !vectors.is_power_of_two() || vectors > MAX_VECTORS {
            return Err(VectorsError::Count {
                count: vectors.into(),
                limit: MAX_VECTORS.into(),
            });
        }
        let vectors_of_router = (0..vectors)
            .map(|vector| {
                Vector::new(router).map_err(|source| VectorsError::Route {
                    vector: vector.into(),
                    source,
                })
            })
            .collect::<Result<_, _>>()?;
        Ok(Arc::new(Self {
            state: Mutex::new(State {
                bus_master: false,
                requester: RequesterId::default(),
                registers: [0; LENGTH],
                vectors: vectors_of_router,
            }),
            count: vectors,
        }))
    }

    /// The capability to place in the function's configuration space.
    pub fn capability(self: &Arc<Self>) -> Capability {
        let log2 = u16::from(self.count.trailing_zeros().to_le_bytes()[0]);
        let control = Control::capable(log2) | Control::ADDRESS_64 | Control::PER_VECTOR_MASKING;
        let masks = u32::MAX >> (u32::from(MAX_VECTORS) - u32::from(self.count));
        Capability::standard(capability_id::MSI, LENGTH)
            .value(CONTROL, &control.bits().to_le_bytes())
            .writable(
                CONTROL,
                &(Control::ENABLE | Control::ENABLED).bits().to_le_bytes(),
            )
            .writable(ADDRESS, &0xffff_fffc_u32.to_le_bytes())
            .writable(ADDRESS_UPPER, &u32::MAX.to_le_bytes())
            .writable(DATA, &u16::MAX.to_le_bytes())
            .writable(MASK, &masks.to_le_bytes())
            .handler(Arc::clone(self) as Arc<dyn CapabilityHandler>)
    }

    /// The route of `vector`, for the device to signal. `None` if there is no such vector. Vectors beyond those that the
    /// guest granted are never delivered: [`granted`](Self::granted) tells how many there are.
    pub fn route(&self, vector: u8) -> Option<Arc<dyn MsiRoute>> {
        let state = self.lock();
        Some(Arc::clone(state.vectors.get(usize::from(vector))?.route()))
    }

    /// How many vectors the guest granted; 0 while it has MSI disabled.
    pub fn granted(&self) -> u8 {
        self.lock().granted().min(self.count)
    }

    /// Saves the pending bits.
    pub fn save_pending(&self) -> u32 {
        self.lock().pending()
    }

    /// Takes over saved pending bits and delivers those that are not masked. Bits of vectors that do not exist are dropped.
    pub fn restore_pending(&self, pending: u32) {
        let mut state = self.lock();
        for (bit, vector) in state.vectors.iter_mut().enumerate() {
            vector.connect(None);
            vector.set_pending(pending >> bit & 1 != 0);
        }
        state.connect();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn granted(&self) -> u8 {
        let control = Control::from_bits_retain(self.u16(CONTROL));
        if control.contains(Control::ENABLE) {
            // 6 and 7 are reserved (PCIe §7.7.1.2); they grant no more than 5 does.
            1 << control.enabled_log2().min(5)
        } else {
            0
        }
    }

    fn connect(&mut self) {
        let granted = self.granted();
        let address = u64::from(self.u32(ADDRESS_UPPER)) << 32 | u64::from(self.u32(ADDRESS));
        let (data, mask) = (self.u16(DATA), self.u32(MASK));
        for (index, vector) in (0..MAX_VECTORS).zip(&mut self.vectors) {
            let open = self.bus_master && index < granted && mask >> index & 1 == 0;
            // The function owns as many low bits of the data as the granted vectors need.
            let low = u16::from(granted.saturating_sub(1));
            vector.connect(open.then_some(MsiMessage {
                requester: self.requester,
                address,
                data: u32::from(data & !low | u16::from(index)),
            }));
        }
    }

    fn pending(&mut self) -> u32 {
        (self.vectors.iter_mut().enumerate()).fold(0, |bits, (bit, vector)| {
            bits | u32::from(vector.pending()) << bit
        })
    }

    fn u16(&self, offset: usize) -> u16 {
        let bytes = self.registers.get(offset..).and_then(|r| r.first_chunk());
        bytes.map_or(0, |bytes| u16::from_le_bytes(*bytes))
    }

    fn u32(&self, offset: usize) -> u32 {
        let bytes = self.registers.get(offset..).and_then(|r| r.first_chunk());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }
}

impl CapabilityHandler for Msi {
    fn refresh(&self, registers: &mut [u8], range: Range<usize>) {
        if within(&range, &(PENDING..PENDING + 4)).is_some()
            && let Some(bits) = registers.get_mut(PENDING..PENDING + 4)
        {
            bits.copy_from_slice(&self.lock().pending().to_le_bytes());
        }
    }

    fn written(&self, registers: &[u8], _range: Range<usize>) {
        let Some(registers) = registers.first_chunk() else {
            return;
        };
        let mut state = self.lock();
        state.registers = *registers;
        state.connect();
    }

    fn set_bus_master(&self, enabled: bool) {
        let mut state = self.lock();
        state.bus_master = enabled;
        state.connect();
    }

    fn set_requester(&self, requester: RequesterId) {
        let mut state = self.lock();
        state.requester = requester;
        state.connect();
    }

    fn reset(&self) {
        for vector in &mut self.lock().vectors {
            vector.connect(None);
            vector.pending();
            vector.set_pending(false);
        }
    }
}
