use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::binding::{Bindings, Wanted};
use super::doorbell::Placed;
use super::hook::Hooked;
use super::region::{Place, Region};
use super::table::Table;
use super::{
    AddressSpace, BusDevice, BusError, Direction, Doorbell, DoorbellAddress, DoorbellId, Hook,
    HookId, RegionId, Result,
};

/// What writers know of an address space.
pub struct Registry {
    space: AddressSpace,
    regions: BTreeMap<RegionId, Arc<Region>>,
    /// Numbers regions, hooks and doorbells.
    next: u64,
    pub accounting: bool,
    pub bindings: Bindings,
}

impl Registry {
    pub fn new(space: AddressSpace) -> Self {
        Self {
            space,
            regions: BTreeMap::new(),
            next: 0,
            accounting: false,
            bindings: Bindings::default(),
        }
    }

    /// The table that readers should have.
    pub fn table(&self) -> Table {
        Table::build(self.regions.values(), self.accounting)
    }

    /// The doorbells that a binder should have: those that have an address and that no hook watches.
    pub fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::new();
        for region in self.regions.values() {
            let Some(place) = region.place else {
                continue;
            };
            for placed in region
                .ringing()
                .filter(|placed| region.is_unwatched(placed))
            {
                let address = DoorbellAddress {
                    space: self.space,
                    address: place.first.saturating_add(placed.offset),
                    width: placed.doorbell.width,
                    datamatch: placed.doorbell.datamatch,
                };
                wanted.insert(placed.id, (address, Arc::clone(&placed.doorbell.eventfd)));
            }
        }
        wanted
    }

    pub fn insert(
        &mut self,
        base: Option<u64>,
        size: u64,
        name: Arc<str>,
        device: Arc<dyn BusDevice>,
    ) -> Result<RegionId> {
        let id = RegionId(self.serial());
        let mut region = Region {
            id,
            name,
            size,
            place: None,
            device,
            hooks: Vec::new(),
            doorbells: Vec::new(),
        };
        // One that can be nowhere is refused also when it has no base yet.
        let place = self.vacancy(&region, base.unwrap_or(0), base.is_some())?;
        region.place = base.map(|_| place);
        self.regions.insert(id, Arc::new(region));
        Ok(id)
    }

    pub fn relocate(&mut self, id: RegionId, base: u64) -> Result<()> {
        let place = self.vacancy(self.region(id)?, base, true)?;
        self.region_mut(id)?.place = Some(place);
        Ok(())
    }

    pub fn unmap(&mut self, id: RegionId) -> Result<()> {
        self.region_mut(id)?.place = None;
        Ok(())
    }

    pub fn remove(&mut self, id: RegionId) -> Result<Arc<Region>> {
        self.regions.remove(&id).ok_or(BusError::NoRegion(id))
    }

    pub fn add_hook(
        &mut self,
        region: RegionId,
        offsets: Range<u64>,
        direction: Direction,
        hook: Arc<dyn Hook>,
    ) -> Result<HookId> {
        inside(self.region(region)?, offsets.clone())?;
        let id = HookId {
            region,
            serial: self.serial(),
        };
        self.region_mut(region)?.hooks.push(Hooked {
            id,
            offsets,
            direction,
            hook,
        });
        Ok(id)
    }

    pub fn remove_hook(&mut self, id: HookId) -> Result<()> {
        let region = self
            .region_mut(id.region)
            .map_err(|_| BusError::NoHook(id))?;
        let index = region.hooks.iter().position(|hooked| hooked.id == id);
        region.hooks.remove(index.ok_or(BusError::NoHook(id))?);
        Ok(())
    }

    pub fn add_doorbell(
        &mut self,
        region: RegionId,
        offset: u64,
        doorbell: Doorbell,
    ) -> Result<DoorbellId> {
        let of = self.region(region)?;
        if !doorbell.is_valid() {
            return Err(BusError::SilentDoorbell(doorbell));
        }
        let width = doorbell.width.map_or(1, u64::from);
        inside(of, offset..offset.saturating_add(width))?;
        let mut there = of.doorbells.iter().filter(|placed| placed.offset == offset);
        if let Some(existing) = there.find(|placed| placed.doorbell.collides(&doorbell)) {
            return Err(BusError::DoorbellTaken {
                name: of.name.to_string(),
                offset,
                existing: existing.doorbell.clone(),
                new: doorbell,
            });
        }
        let index = of
            .doorbells
            .partition_point(|placed| placed.offset <= offset);
        let id = DoorbellId {
            region,
            serial: self.serial(),
        };
        self.region_mut(region)?.doorbells.insert(
            index,
            Placed {
                id,
                offset,
                doorbell,
            },
        );
        Ok(id)
    }

    pub fn remove_doorbell(&mut self, id: DoorbellId) -> Result<()> {
        let region = self
            .region_mut(id.region)
            .map_err(|_| BusError::NoDoorbell(id))?;
        let index = region.doorbells.iter().position(|placed| placed.id == id);
        region
            .doorbells
            .remove(index.ok_or(BusError::NoDoorbell(id))?);
        Ok(())
    }

    fn serial(&mut self) -> u64 {
        let serial = self.next;
        self.next = serial.wrapping_add(1);
        serial
    }

    fn region(&self, id: RegionId) -> Result<&Region> {
        self.regions
            .get(&id)
            .map(|region| &**region)
            .ok_or(BusError::NoRegion(id))
    }

    /// The region to change: a copy, since readers have the old one.
    fn region_mut(&mut self, id: RegionId) -> Result<&mut Region> {
        self.regions
            .get_mut(&id)
            .map(Arc::make_mut)
            .ok_or(BusError::NoRegion(id))
    }

    /// Where `region` would be at `base`, if it fits there and, when that matters, no other region has an address of it.
    fn vacancy(&self, region: &Region, base: u64, exclusive: bool) -> Result<Place> {
        let place =
            region
                .place_at(base, self.space.last())
                .ok_or_else(|| BusError::OutOfSpace {
                    name: region.name.to_string(),
                    base,
                    size: region.size,
                    space: self.space,
                })?;
        for other in self
            .regions
            .values()
            .filter(|other| exclusive && other.id != region.id)
        {
            if let Some(taken) = other.place.filter(|taken| taken.overlaps(place)) {
                return Err(BusError::Overlap {
                    new: region.named(place),
                    existing: other.named(taken),
                });
            }
        }
        Ok(place)
    }
}

/// Whether `offsets` are some, and in `region`.
fn inside(region: &Region, offsets: Range<u64>) -> Result<()> {
    if offsets.is_empty() || offsets.end > region.size {
        return Err(BusError::NotInRegion {
            name: region.name.to_string(),
            size: region.size,
            offsets,
        });
    }
    Ok(())
}
