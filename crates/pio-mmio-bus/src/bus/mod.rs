//! The two address spaces of a machine and the regions in them.
//!
//! A [`Bus`] is one address space. Any thread inserts, moves and removes regions through it at any time, also from
//! inside an access: nothing there waits for an access to end. Each vCPU thread reads and writes through a
//! [`BusReader`] of its own.
//!
//! To a region can be attached [hooks](Hook), which stand between the guest and some of its registers, and
//! [doorbells](Doorbell), registers whose write only signals an eventfd. Both are given by offset and
//! stay attached where the region moves, so that a guest cannot shake them off by moving a BAR.

mod account;
mod binding;
mod device;
mod doorbell;
mod error;
mod hook;
mod index;
mod reader;
mod reclaim;
mod region;
mod registry;
mod table;

use std::ops::Range;
use std::sync::{Arc, Weak};

pub use account::{Bucket, BusReport, RegionReport, Times};
pub use device::{AccessError, BusDevice};
pub use doorbell::{Doorbell, DoorbellAddress, DoorbellBinder, DoorbellId};
pub use error::{BusError, NamedRange};
pub use hook::{Access, Direction, Hook, HookId, Operation, Suspension, Verdict};
pub use reader::{BusReader, Outcome, StringOutcome};
pub use region::{AddressSpace, RegionId};

use account::Meters;
use reclaim::{Grace, Mutex, Published, lock};
use registry::Registry;
use table::Table;

/// A result of changing the bus.
pub type Result<T> = std::result::Result<T, BusError>;

/// An address space: a handle, cheap to clone. A device that is on the bus keeps a [`WeakBus`] instead: with a `Bus` the two
/// would keep each other alive.
///
/// The process needs `membarrier(2)`; a seccomp filter must let it pass.
#[derive(Clone)]
pub struct Bus(Arc<Shared>);

/// A handle that does not keep the address space alive.
#[derive(Clone)]
pub struct WeakBus(Weak<Shared>);

impl WeakBus {
    /// The bus, if it is still there.
    pub fn upgrade(&self) -> Option<Bus> {
        self.0.upgrade().map(Bus)
    }
}

struct Shared {
    space: AddressSpace,
    table: Arc<Published<Table>>,
    registry: Mutex<Registry>,
    meters: Arc<Meters>,
}

impl Bus {
    /// An empty address space. Fails if the kernel has no private expedited `membarrier` (before Linux 4.14).
    pub fn new(space: AddressSpace) -> Result<Self> {
        let registry = Registry::new(space);
        Ok(Self(Arc::new(Shared {
            space,
            table: Published::new(registry.table()).map_err(BusError::Barrier)?,
            registry: Mutex::new(registry),
            meters: Arc::default(),
        })))
    }

    /// A handle for a device that is on this bus.
    pub fn downgrade(&self) -> WeakBus {
        WeakBus(Arc::downgrade(&self.0))
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
        let name = name.into();
        self.change(|registry| registry.insert(Some(base), size, name, device))
            .map(|(id, _)| id)
    }

    /// Makes a region of `size` bytes that is at no address until [`relocate`](Self::relocate) places it: a BAR while
    /// decoding is off.
    pub fn insert_unmapped(
        &self,
        size: u64,
        name: impl Into<Arc<str>>,
        device: Arc<dyn BusDevice>,
    ) -> Result<RegionId> {
        let name = name.into();
        self.change(|registry| registry.insert(None, size, name, device))
            .map(|(id, _)| id)
    }

    /// Moves a region so that it begins at `base`. A device may move itself during its own access; accesses that are in
    /// progress end where they began. After [`BusError::Bind`] the region has moved.
    pub fn relocate(&self, id: RegionId, base: u64) -> Result<()> {
        self.change(|registry| registry.relocate(id, base))
            .map(|_| ())
    }

    /// Takes a region off the addresses without removing it: it keeps its identity and what is attached to it.
    pub fn unmap(&self, id: RegionId) -> Result<()> {
        self.change(|registry| registry.unmap(id)).map(|_| ())
    }

    /// Removes a region and what is attached to it, at once: accesses that begin after this do not find it. A device may
    /// remove itself.
    pub fn remove(&self, id: RegionId) -> Result<Retired> {
        self.retire(|registry| registry.remove(id))
    }

    /// Has `hook` see accesses to `offsets` of a region. Accesses to other registers do not become slower.
    ///
    /// A doorbell there is taken back from its binder while the hook stands, so that its writes are seen.
    pub fn add_hook(
        &self,
        region: RegionId,
        offsets: Range<u64>,
        direction: Direction,
        hook: Arc<dyn Hook>,
    ) -> Result<HookId> {
        self.change(|registry| registry.add_hook(region, offsets, direction, hook))
            .map(|(id, _)| id)
    }

    /// Removes a hook. Accesses in progress may still call it. After [`BusError::Bind`] it has been removed.
    pub fn remove_hook(&self, id: HookId) -> Result<Retired> {
        self.retire(|registry| registry.remove_hook(id))
    }

    /// Makes the register at `offset` of a region a doorbell. Writes that begin there and match ring it; all others go to
    /// the device. Several doorbells can be at one offset if they differ in value or width.
    pub fn add_doorbell(
        &self,
        region: RegionId,
        offset: u64,
        doorbell: Doorbell,
    ) -> Result<DoorbellId> {
        let mut added = None;
        let result = self.change(|registry| {
            let id = registry.add_doorbell(region, offset, doorbell)?;
            added = Some(id);
            Ok(id)
        });
        if let (Err(BusError::Bind { .. }), Some(id)) = (&result, added) {
            self.change(|registry| registry.remove_doorbell(id))?;
        }
        result.map(|(id, _)| id)
    }

    /// Removes a doorbell: its writes go to the device again. Accesses in progress may still signal it.
    pub fn remove_doorbell(&self, id: DoorbellId) -> Result<Retired> {
        self.retire(|registry| registry.remove_doorbell(id))
    }

    /// Hands the doorbells, those that exist and those to come, to `binder`, and takes them back from the one before.
    /// After [`BusError::Bind`] it has all that it took.
    pub fn set_doorbell_binder(&self, binder: Option<Arc<dyn DoorbellBinder>>) -> Result<()> {
        let mut registry = lock(&self.0.registry);
        let wanted = registry.wanted();
        registry.bindings.set_binder(binder, wanted)
    }

    /// Switches on or off that accesses are timed. While it is off, it costs nothing.
    pub fn set_accounting(&self, on: bool) -> Result<()> {
        self.change(|registry| {
            registry.accounting = on;
            Ok(())
        })
        .map(|_| ())
    }

    /// What the readers have counted so far.
    pub fn report(&self) -> BusReport {
        self.0.meters.report(self.0.space)
    }

    /// A reader for one thread.
    pub fn reader(&self) -> BusReader {
        BusReader::new(self.0.table.reader(), &self.0.meters)
    }

    fn retire<T>(&self, change: impl FnOnce(&mut Registry) -> Result<T>) -> Result<Retired> {
        let (_, grace) = self.change(change)?;
        Ok(Retired {
            grace,
            table: Arc::clone(&self.0.table),
        })
    }

    /// Makes a change, publishes it, and has the doorbells follow. Replaced tables, and with them removed devices, are
    /// dropped after the locks are released, since a device's drop may well use the bus.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Registry) -> Result<T>,
    ) -> Result<(T, Grace<Table>)> {
        let shared = &*self.0;
        let mut registry = lock(&shared.registry);
        let value = change(&mut registry)?;
        let wanted = registry.wanted();
        registry.bindings.release(&wanted);
        let published = shared.table.publish(registry.table());
        let bound = registry.bindings.bind(wanted);
        drop(registry);
        drop(shared.table.collect());
        let grace = published.map_err(BusError::Barrier)?;
        bound?;
        Ok((value, grace))
    }
}

/// What was taken off the bus: accesses that began before may still use it. Dropping this is fine.
#[must_use = "wait for it before freeing what the device uses, or drop it"]
pub struct Retired {
    grace: Grace<Table>,
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
