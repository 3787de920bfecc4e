//! A device and an I/O address space that answer by themselves, for tests, fuzzers and demonstrations: fakes of the seam. What they do not know
//! about a kernel is what the lab is for.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

use super::device::{Access, DmaSpace, Interrupt, Region, RegionIndex, VfioDevice};
use super::memory::HostMemory;
use super::migration::{DeviceState, Migration};
use super::window::{GuestWindow, GuestWindows};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device whose regions are memory.
#[derive(Default)]
pub struct FakeDevice {
    regions: BTreeMap<RegionIndex, Region>,
    vectors: BTreeMap<Interrupt, u32>,
    migratable: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    bytes: BTreeMap<RegionIndex, Vec<u8>>,
    connected: BTreeMap<Interrupt, Vec<EventFd>>,
    pin: Pin,
    /// How it is, and what is left to read or was written of its state; `None` is the state of a device that failed.
    migration: Option<(DeviceState, VecDeque<u8>)>,
    resets: usize,
    accesses: usize,
}

/// The INTx pin, which the kernel masks when it signals.
#[derive(Default)]
struct Pin {
    asserted: bool,
    masked: bool,
    unmask: Option<EventFd>,
}

impl State {
    fn signal(&self, interrupt: Interrupt, vector: usize) -> bool {
        let state = self.migration.as_ref().map(|(state, _)| *state);
        if state.is_some_and(|state| state != DeviceState::Running) {
            return false;
        }
        let eventfds = self.connected.get(&interrupt);
        let eventfd = eventfds.and_then(|all| all.get(vector));
        eventfd.is_some_and(|eventfd| eventfd.write(1).is_ok())
    }

    fn signal_pin(&mut self) {
        if self.pin.asserted && !self.pin.masked {
            self.pin.masked = self.signal(Interrupt::Intx, 0);
        }
    }
}

impl FakeDevice {
    /// A device with this configuration space, no other regions and no interrupts.
    pub fn new(config: Vec<u8>) -> Self {
        Self::default().region(RegionIndex::Config, config, None)
    }

    /// Adds a region with these contents, of which some parts may be mapped.
    pub fn region(
        mut self,
        index: RegionIndex,
        bytes: Vec<u8>,
        mappable: impl IntoIterator<Item = Range<u64>>,
    ) -> Self {
        let size = bytes.len() as u64;
        let mappable = mappable.into_iter().collect();
        self.regions.insert(index, Region { size, mappable });
        lock(&self.state).bytes.insert(index, bytes);
        self
    }

    /// Gives the device this many vectors of a kind.
    pub fn vectors(mut self, interrupt: Interrupt, count: u32) -> Self {
        self.vectors.insert(interrupt, count);
        self
    }

    /// Lets the device be migrated: its state is what its regions hold, configuration space last.
    pub fn migratable(mut self) -> Self {
        self.migratable = true;
        lock(&self.state).migration = Some((DeviceState::Running, VecDeque::new()));
        self
    }

    /// Fires a vector. Whether anybody hears it.
    pub fn fire(&self, interrupt: Interrupt, vector: usize) -> bool {
        lock(&self.state).signal(interrupt, vector)
    }

    /// Drives the INTx pin. Asserted it signals once, until it is unmasked.
    pub fn set_pin(&self, asserted: bool) {
        let mut state = lock(&self.state);
        state.pin.asserted = asserted;
        state.signal_pin();
    }

    /// Unmasks the INTx pin if that was asked for since, as the kernel does at once. Whether it was.
    pub fn unmask_pin(&self) -> bool {
        let mut state = lock(&self.state);
        let asked = state.pin.unmask.as_ref();
        if asked.is_none_or(|eventfd| eventfd.read().is_err()) {
            return false;
        }
        state.pin.masked = false;
        state.signal_pin();
        true
    }

    /// How many vectors of a kind are connected.
    pub fn connected(&self, interrupt: Interrupt) -> usize {
        lock(&self.state)
            .connected
            .get(&interrupt)
            .map_or(0, Vec::len)
    }

    /// Whether an eventfd unmasks INTx.
    pub fn resampled(&self) -> bool {
        lock(&self.state).pin.unmask.is_some()
    }

    /// How often it was reset.
    pub fn resets(&self) -> usize {
        lock(&self.state).resets
    }

    /// How many reads and writes of regions there were: with a kernel each is a system call.
    pub fn accesses(&self) -> usize {
        lock(&self.state).accesses
    }

    /// What a region holds.
    pub fn contents(&self, index: RegionIndex) -> Vec<u8> {
        lock(&self.state)
            .bytes
            .get(&index)
            .cloned()
            .unwrap_or_default()
    }
}

/// The part of a region that an access is to.
fn part(bytes: Option<&mut Vec<u8>>, offset: u64, length: usize) -> io::Result<&mut [u8]> {
    let part = bytes.and_then(|bytes| {
        let start = usize::try_from(offset).ok()?;
        bytes.get_mut(start..start.checked_add(length)?)
    });
    part.ok_or(ErrorKind::InvalidInput.into())
}

impl VfioDevice for FakeDevice {
    fn region(&self, index: RegionIndex) -> Region {
        self.regions.get(&index).cloned().unwrap_or_default()
    }

    fn read(&self, index: RegionIndex, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.accesses += 1;
        let part = part(state.bytes.get_mut(&index), offset, data.len())?;
        data.copy_from_slice(part);
        Ok(())
    }

    fn write(&self, index: RegionIndex, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.accesses += 1;
        part(state.bytes.get_mut(&index), offset, data.len())?.copy_from_slice(data);
        Ok(())
    }

    fn migration(&self) -> Option<&dyn Migration> {
        self.migratable.then_some(self)
    }

    /// Memory of its own, which is not what the region holds.
    fn map(&self, index: RegionIndex, part: Range<u64>) -> io::Result<MmapRegion> {
        let mappable = VfioDevice::region(self, index).mappable;
        let inside = |whole: &Range<u64>| whole.start <= part.start && part.end <= whole.end;
        let pages = (part.start | part.end).is_multiple_of(4096);
        let size = part.end.checked_sub(part.start);
        match size.map(usize::try_from) {
            Some(Ok(size)) if size != 0 && pages && mappable.iter().any(inside) => {
                MmapRegion::new(size).map_err(io::Error::other)
            }
            _ => Err(ErrorKind::InvalidInput.into()),
        }
    }

    fn vectors(&self, interrupt: Interrupt) -> u32 {
        self.vectors.get(&interrupt).copied().unwrap_or(0)
    }

    fn connect(&self, interrupt: Interrupt, eventfds: &[&EventFd]) -> io::Result<()> {
        use Interrupt::{Intx, Msi, Msix};
        let there = usize::try_from(VfioDevice::vectors(self, interrupt));
        if there.map_or(true, |there| eventfds.len() > there) {
            return Err(ErrorKind::InvalidInput.into());
        }
        let eventfds = eventfds.iter().map(|eventfd| eventfd.try_clone());
        let eventfds = eventfds.collect::<io::Result<Vec<_>>>()?;
        let mut state = lock(&self.state);
        let exclusive = [Intx, Msi, Msix];
        let other = |kind: &Interrupt| *kind != interrupt && state.connected.contains_key(kind);
        if exclusive.contains(&interrupt) && exclusive.iter().any(other) {
            return Err(ErrorKind::InvalidInput.into());
        }
        if interrupt == Intx {
            state.pin.masked = false;
            state.pin.unmask = None;
        }
        if eventfds.is_empty() {
            state.connected.remove(&interrupt);
        } else {
            state.connected.insert(interrupt, eventfds);
        }
        if interrupt == Intx {
            state.signal_pin();
        }
        Ok(())
    }

    fn resample(&self, eventfd: &EventFd) -> io::Result<()> {
        let eventfd = eventfd.try_clone()?;
        let mut state = lock(&self.state);
        if !state.connected.contains_key(&Interrupt::Intx) {
            return Err(ErrorKind::InvalidInput.into());
        }
        state.pin.unmask = Some(eventfd);
        Ok(())
    }

    fn reset(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.resets += 1;
        if self.migratable {
            state.migration = Some((DeviceState::Running, VecDeque::new()));
        }
        Ok(())
    }
}

impl Migration for FakeDevice {
    /// All states can be reached from each, by way of the stopped one, as the kernel sees to.
    fn set_state(&self, state: DeviceState) -> io::Result<()> {
        let mut own = lock(&self.state);
        let (before, written) = own.migration.take().ok_or(ErrorKind::InvalidInput)?;
        if before == DeviceState::Resuming && state != before {
            let mut written = written.into_iter();
            for bytes in own.bytes.values_mut() {
                for byte in bytes {
                    // A device that got less than its state has failed.
                    *byte = written.next().ok_or(ErrorKind::InvalidData)?;
                }
            }
            if written.next().is_some() {
                return Err(ErrorKind::InvalidData.into());
            }
        }
        let left = match state {
            DeviceState::StopCopy => own.bytes.values().flatten().copied().collect(),
            _ => VecDeque::new(),
        };
        own.migration = Some((state, left));
        Ok(())
    }

    fn read_state(&self, data: &mut [u8]) -> io::Result<usize> {
        match &mut lock(&self.state).migration {
            Some((DeviceState::StopCopy, left)) => left.read(data),
            _ => Err(ErrorKind::InvalidInput.into()),
        }
    }

    fn write_state(&self, data: &[u8]) -> io::Result<()> {
        match &mut lock(&self.state).migration {
            Some((DeviceState::Resuming, written)) => written.write_all(data),
            _ => Err(ErrorKind::InvalidInput.into()),
        }
    }
}

/// Memory slots that remember what is shown.
#[derive(Default)]
pub struct FakeWindows(Arc<Mutex<FakeSlots>>);

#[derive(Default)]
struct FakeSlots {
    /// Size in bytes and place of each.
    slots: Vec<(u64, Option<u64>)>,
    refuses: bool,
}

impl FakeWindows {
    /// What is shown: address and size in bytes, in the order in which the windows were made.
    pub fn shown(&self) -> Vec<(u64, u64)> {
        let slots = lock(&self.0);
        let shown = slots.slots.iter();
        shown.filter_map(|&(size, at)| Some((at?, size))).collect()
    }

    /// Refuses to show anything from now on, as a VMM does at a place where there is memory.
    pub fn refuse(&self) {
        lock(&self.0).refuses = true;
    }
}

impl GuestWindows for FakeWindows {
    fn window(&self, memory: MmapRegion) -> io::Result<Box<dyn GuestWindow>> {
        let mut slots = lock(&self.0);
        slots.slots.push((memory.size() as u64, None));
        Ok(Box::new(FakeWindow {
            slots: Arc::clone(&self.0),
            number: slots.slots.len() - 1,
        }))
    }
}

struct FakeWindow {
    slots: Arc<Mutex<FakeSlots>>,
    number: usize,
}

impl GuestWindow for FakeWindow {
    fn show(&self, at: Option<u64>) -> io::Result<()> {
        let mut slots = lock(&self.slots);
        if slots.refuses && at.is_some() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let slot = slots.slots.get_mut(self.number);
        slot.ok_or(ErrorKind::NotFound)?.1 = at;
        Ok(())
    }
}

/// An I/O address space by the rules of type 1: no overlaps, whole mappings are unmapped, a limit on their number.
#[derive(Default)]
pub struct FakeDmaSpace {
    mappings: Mutex<BTreeMap<u64, (HostMemory, Access)>>,
    operations: Mutex<(usize, usize)>,
    limit: Option<usize>,
}

impl FakeDmaSpace {
    /// A space that holds no more than `limit` mappings.
    pub fn with_limit(limit: usize) -> Self {
        Self {
            limit: Some(limit),
            ..Self::default()
        }
    }

    /// The mappings: I/O address, size in bytes, access.
    pub fn mappings(&self) -> Vec<(u64, u64, Access)> {
        let mappings = lock(&self.mappings);
        let all = mappings.iter();
        all.map(|(&iova, (memory, access))| (iova, memory.size(), *access))
            .collect()
    }

    /// How many maps and unmaps there were: with a kernel each is an ioctl.
    pub fn operations(&self) -> (usize, usize) {
        *lock(&self.operations)
    }
}

impl DmaSpace for FakeDmaSpace {
    fn map(&self, iova: u64, memory: &HostMemory, access: Access) -> io::Result<()> {
        lock(&self.operations).0 += 1;
        let mut mappings = lock(&self.mappings);
        let aligned = (iova | memory.size()).is_multiple_of(4096) && memory.size() != 0;
        let last = iova.checked_add(memory.size().wrapping_sub(1));
        let (true, Some(last)) = (aligned, last) else {
            return Err(ErrorKind::InvalidInput.into());
        };
        let before = mappings.range(..=last).next_back();
        if before.is_some_and(|(first, (other, _))| first + (other.size() - 1) >= iova) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if self.limit.is_some_and(|limit| mappings.len() >= limit) {
            return Err(ErrorKind::StorageFull.into());
        }
        mappings.insert(iova, (memory.clone(), access));
        Ok(())
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<()> {
        lock(&self.operations).1 += 1;
        let mut mappings = lock(&self.mappings);
        let last = size.checked_sub(1).and_then(|rest| iova.checked_add(rest));
        let last = last.ok_or(ErrorKind::InvalidInput)?;
        let split = |address: u64| {
            let before = mappings.range(..address).next_back();
            before.is_some_and(|(first, (memory, _))| first + (memory.size() - 1) >= address)
        };
        if split(iova) || last.checked_add(1).is_some_and(split) {
            return Err(ErrorKind::InvalidInput.into());
        }
        mappings.retain(|first, _| !(iova..=last).contains(first));
        Ok(())
    }
}
