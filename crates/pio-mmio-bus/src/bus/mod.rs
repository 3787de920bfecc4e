//! The two address spaces of a machine and the regions in them.
//!
//! A [`Bus`] is one address space. Any thread inserts, moves and removes regions through it at any time, also from
//! inside an access: nothing there waits for an access to end. Each vCPU thread reads and writes through a
//! [`BusReader`] of its own.

mod device;
mod error;
mod hook;
mod reader;
mod reclaim;
mod region;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use device::{AccessError, BusDevice};
pub use error::{BusError, NamedRange};
pub use hook::Suspension;
pub use reader::{BusReader, Outcome};
pub use region::{AddressSpace, RegionId};

use reclaim::{Grace, Mutex, Published, lock};
use region::{Place, Region};
use table::Table;

/// A result of changing the bus.
pub type Result<T> = std::result::Result<T, BusError>;

/// An address space: a handle, cheap to clone.
///
/// The process needs `membarrier(2)`; a seccomp filter must let it pass.
#[derive(Clone)]
pub struct Bus(Arc<Shared>);

struct Shared {
    space: AddressSpace,
    table: Arc<Published<Table>>,
    registry: Mutex<Registry>,
}

/// What writers know.
struct Registry {
    regions: BTreeMap<RegionId, Arc<Region>>,
    next: u64,
}

impl Bus {
    /// An empty address space. Fails if the kernel has no private expedited `membarrier` (before Linux 4.14).
    pub fn new(space: AddressSpace) -> Result<Self> {
        let table = Published::new(Table::build([].iter())).map_err(BusError::Barrier)?;
        Ok(Self(Arc::new(Shared {
            space,
            table,
            registry: Mutex::new(Registry {
                regions: BTreeMap::new(),
                next: 0,
            }),
        })))
    }

    /// Which address space this is.
    pub fn space(&self) -> AddressSpace {
        self.0.space
    }

    /// Puts `device` at the `size` bytes from `base`. `name` is what errors and reports call it.
    pub fn insert(
        &self,
        base: u64,
        size: u64,
        name: impl Into<Arc<str>>,
        device: Arc<dyn BusDevice>,
    ) -> Result<RegionId> {
        self.add(Some(base), size, name.into(), device)
    }

    /// Makes a region of `size` bytes that is at no address until [`relocate`](Self::relocate) places it: a BAR while
    /// decoding is off.
    pub fn insert_unmapped(
        &self,
        size: u64,
        name: impl Into<Arc<str>>,
        device: Arc<dyn BusDevice>,
    ) -> Result<RegionId> {
        self.add(None, size, name.into(), device)
    }

    fn add(
        &self,
        base: Option<u64>,
        size: u64,
        name: Arc<str>,
        device: Arc<dyn BusDevice>,
    ) -> Result<RegionId> {
        self.change(|registry, space| {
            let id = RegionId(registry.next);
            let mut region = Region {
                id,
                name,
                size,
                place: None,
                device,
            };
            // Also for a region without a base: one that can fit nowhere is refused now.
            let place = region.place_at(base.unwrap_or(0), space)?;
            if base.is_some() {
                registry.vacant(&region, place)?;
                region.place = Some(place);
            }
            registry.next = registry.next.saturating_add(1);
            registry.regions.insert(id, Arc::new(region));
            Ok(id)
        })
        .map(|(id, _)| id)
    }

    /// Moves a region so that it begins at `base`. A device may move itself during its own access; accesses that are in
    /// progress end where they began.
    pub fn relocate(&self, id: RegionId, base: u64) -> Result<()> {
        self.change(|registry, space| {
            let region = registry.region(id)?;
            let place = region.place_at(base, space)?;
            registry.vacant(region, place)?;
            registry.region_mut(id)?.place = Some(place);
            Ok(())
        })
        .map(|_| ())
    }

    /// Takes a region off the addresses without removing it: it keeps its identity and what is attached to it.
    pub fn unmap(&self, id: RegionId) -> Result<()> {
        self.change(|registry, _| {
            registry.region_mut(id)?.place = None;
            Ok(())
        })
        .map(|_| ())
    }

    /// Removes a region at once: accesses that begin after this do not find it. A device may remove itself.
    pub fn remove(&self, id: RegionId) -> Result<Retired> {
        let ((), grace) = self.change(|registry, _| {
            let removed = registry.regions.remove(&id);
            removed.map(|_| ()).ok_or(BusError::NoRegion(id))
        })?;
        Ok(Retired {
            grace,
            table: Arc::clone(&self.0.table),
        })
    }

    /// A reader for one thread.
    pub fn reader(&self) -> BusReader {
        BusReader {
            table: self.0.table.reader(),
        }
    }

    /// Makes a change and publishes it. Replaced tables, and with them removed devices, are dropped after the locks are
    /// released, since a device's drop may well use the bus.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Registry, AddressSpace) -> Result<T>,
    ) -> Result<(T, Grace)> {
        let shared = &*self.0;
        let mut registry = lock(&shared.registry);
        let value = change(&mut registry, shared.space)?;
        let grace = shared
            .table
            .publish(Table::build(registry.regions.values()))
            .map_err(BusError::Barrier)?;
        drop(registry);
        drop(shared.table.collect());
        Ok((value, grace))
    }
}

impl Registry {
    fn region(&self, id: RegionId) -> Result<&Region> {
        let region = self.regions.get(&id).ok_or(BusError::NoRegion(id))?;
        Ok(region)
    }

    /// The region to change: a copy, while readers have the old one.
    fn region_mut(&mut self, id: RegionId) -> Result<&mut Region> {
        let region = self.regions.get_mut(&id).ok_or(BusError::NoRegion(id))?;
        Ok(Arc::make_mut(region))
    }

    /// Whether `place` is free for `region`: no other region has an address of it.
    fn vacant(&self, region: &Region, place: Place) -> Result<()> {
        for other in self.regions.values().filter(|other| other.id != region.id) {
            if let Some(taken) = other.place.filter(|taken| taken.overlaps(place)) {
                return Err(BusError::Overlap {
                    new: region.named(place),
                    existing: other.named(taken),
                });
            }
        }
        Ok(())
    }
}

/// What was taken off the bus: accesses that began before may still use it. Dropping this is fine.
#[must_use = "wait for it before freeing what the device uses, or drop it"]
pub struct Retired {
    grace: Grace,
    table: Arc<Published<Table>>,
}

impl Retired {
    /// Whether no access uses it any more.
    pub fn is_done(&self) -> bool {
        self.grace.is_over()
    }

    /// Returns when no access uses it any more.
    ///
    /// Legal only outside any access: inside one (in a [`BusDevice`] or a hook) it can wait for itself, for ever.
    pub fn wait(self) {
        self.grace.wait();
        drop(self.table.collect());
    }
}
