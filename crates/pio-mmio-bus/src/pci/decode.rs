use std::sync::{Arc, Mutex, PoisonError};

use super::bar::BarKind;
use crate::bus::{AddressSpace, Bus, BusDevice, BusError, RegionId};

/// Places the BARs of all functions in the machine's two address spaces as the guest programs them.
///
/// A BAR that would overlap something is taken off the bus, and placed as soon as a change to another BAR makes room: a guest may
/// well swap two BARs, or size one over its neighbour.
pub struct Decoder {
    pio: Bus,
    mmio: Bus,
    displaced: Mutex<Vec<Displaced>>,
}

struct Displaced {
    space: AddressSpace,
    region: RegionId,
    base: u64,
}

impl Decoder {
    /// A decoder that places I/O BARs in `pio` and memory BARs in `mmio`.
    pub fn new(pio: Bus, mmio: Bus) -> Arc<Self> {
        Arc::new(Self {
            pio,
            mmio,
            displaced: Mutex::new(Vec::new()),
        })
    }

    /// The bus of an address space, for doorbells and hooks on a BAR's region.
    pub fn bus(&self, space: AddressSpace) -> &Bus {
        match space {
            AddressSpace::Pio => &self.pio,
            AddressSpace::Mmio => &self.mmio,
        }
    }

    /// Makes a region that is not decoded yet.
    pub fn region(
        self: &Arc<Self>,
        kind: BarKind,
        size: u64,
        name: &str,
        device: Arc<dyn BusDevice>,
    ) -> Result<DecodedRegion, BusError> {
        let space = kind.space();
        Ok(DecodedRegion {
            region: self.bus(space).insert_unmapped(size, name, device)?,
            space,
            decoder: Arc::clone(self),
        })
    }

    fn place(&self, space: AddressSpace, region: RegionId, base: Option<u64>) {
        let mut displaced = self
            .displaced
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        displaced.retain(|other| (other.space, other.region) != (space, region));
        let moved = base.map(|base| Displaced {
            space,
            region,
            base,
        });
        let refused = moved.filter(|moved| !self.fits(moved));
        if base.is_none() || refused.is_some() {
            // It fails for a region that is gone, or if the change is made but its memory cannot be freed.
            let _ = self.bus(space).unmap(region);
        }
        displaced.retain(|waiting| !self.fits(waiting));
        displaced.extend(refused);
    }

    /// Places a region unless something is in its way.
    fn fits(&self, region: &Displaced) -> bool {
        !matches!(
            self.bus(region.space).relocate(region.region, region.base),
            Err(BusError::Overlap { .. } | BusError::OutOfSpace { .. })
        )
    }
}

/// A region that a [`Decoder`] places: a BAR, or one virtual function's share of one. Dropping it removes it from the bus.
pub struct DecodedRegion {
    decoder: Arc<Decoder>,
    space: AddressSpace,
    region: RegionId,
}

impl DecodedRegion {
    /// Decodes the region at `base`, or not at all.
    pub fn place(&self, base: Option<u64>) {
        self.decoder.place(self.space, self.region, base);
    }

    /// The region on the bus of its [`space`](Self::space).
    pub fn id(&self) -> RegionId {
        self.region
    }

    /// Which bus it is on.
    pub fn space(&self) -> AddressSpace {
        self.space
    }
}

impl Drop for DecodedRegion {
    fn drop(&mut self) {
        self.place(None);
        // Nothing to wait for: whoever gave the device holds it as long as it is needed.
        let _ = self.decoder.bus(self.space).remove(self.region);
    }
}
