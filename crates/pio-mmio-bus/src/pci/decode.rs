use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::bar::BarKind;
use crate::bus::{AddressSpace, Bus, BusDevice, BusError, RegionId};

/// Places the BARs of all functions in the machine's two address spaces as the guest programs them.
///
/// A BAR that would overlap something is taken off the bus, and placed as soon as a change to another BAR makes room: a guest may
/// well swap two BARs, or size one over its neighbour.
pub struct Decoder {
    pio: Bus,
    mmio: Bus,
    placements: Mutex<Vec<Placement>>,
}

/// Follows a region as the guest moves it: by memory of the host that answers in its place, without exits.
pub trait Follower: Send + Sync {
    /// The region is decoded at `base` now; or it is about to be decoded there no more, nor elsewhere.
    ///
    /// Called with the decoder locked: it must not place regions.
    fn follow(&self, base: Option<u64>);
}

/// Where a region is to be.
struct Placement {
    space: AddressSpace,
    region: RegionId,
    base: Option<u64>,
    /// There was no room for it.
    displaced: bool,
    follower: Option<Arc<dyn Follower>>,
}

impl Placement {
    fn tell(&self, base: Option<u64>) {
        if let Some(follower) = &self.follower {
            follower.follow(base);
        }
    }
}

impl Decoder {
    /// A decoder that places I/O BARs in `pio` and memory BARs in `mmio`.
    pub fn new(pio: Bus, mmio: Bus) -> Arc<Self> {
        Arc::new(Self {
            pio,
            mmio,
            placements: Mutex::new(Vec::new()),
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
        let region = self.bus(space).insert_unmapped(size, name, device)?;
        self.lock().push(Placement {
            space,
            region,
            base: None,
            displaced: false,
            follower: None,
        });
        Ok(DecodedRegion {
            decoder: Arc::clone(self),
            space,
            region,
        })
    }

    fn place(&self, space: AddressSpace, region: RegionId, base: Option<u64>) {
        let mut placements = self.lock();
        let mut own = placements.iter_mut();
        let Some(own) = own.find(|other| (other.space, other.region) == (space, region)) else {
            return;
        };
        if own.base == base && !own.displaced {
            return;
        }
        if own.base.is_some() && !own.displaced {
            own.tell(None);
        }
        own.base = base;
        self.settle(own);
        if base.is_none() || own.displaced {
            // It fails if the change is made but its memory cannot be freed.
            let _ = self.bus(space).unmap(region);
        }
        for waiting in placements.iter_mut().filter(|other| other.displaced) {
            self.settle(waiting);
        }
    }

    /// Moves a region to where it is to be, unless something is in its way.
    fn settle(&self, placement: &mut Placement) {
        placement.displaced = placement.base.is_some_and(|base| {
            let moved = self.bus(placement.space).relocate(placement.region, base);
            matches!(
                moved,
                Err(BusError::Overlap { .. } | BusError::OutOfSpace { .. })
            )
        });
        if placement.base.is_some() && !placement.displaced {
            placement.tell(placement.base);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Placement>> {
        self.placements
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

    /// Tells `follower` from now on where the region is, beginning with its next move.
    pub fn set_follower(&self, follower: Arc<dyn Follower>) {
        let mut placements = self.decoder.lock();
        let mut own = placements.iter_mut();
        if let Some(own) =
            own.find(|other| (other.space, other.region) == (self.space, self.region))
        {
            own.follower = Some(follower);
        }
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
        self.decoder
            .lock()
            .retain(|other| (other.space, other.region) != (self.space, self.region));
        // Nothing to wait for: whoever gave the device holds it as long as it is needed.
        let _ = self.decoder.bus(self.space).remove(self.region);
    }
}
