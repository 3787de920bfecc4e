use std::collections::{BTreeMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use vm_memory::MmapRegion;
use vmm_sys_util::eventfd::EventFd;

use super::{FakeSlot, lock};
use crate::vfio::device::{Interrupt, Region, RegionIndex, SlotFunction, VfioDevice};
use crate::vfio::migration::{DeviceState, Migration};
use crate::vfio::token::VfToken;

/// A device whose regions are memory.
#[derive(Default)]
pub struct FakeDevice {
    regions: BTreeMap<RegionIndex, Region>,
    vectors: BTreeMap<Interrupt, u32>,
    grows: bool,
    migratable: bool,
    physical: bool,
    slot: Option<Arc<FakeSlot>>,
    state: Mutex<State>,
}

/// A call that changes what is signalled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IrqCall {
    /// Vectors from the first on get eventfds, or none.
    Connect(Interrupt, u32, Vec<bool>),
    /// The kind is switched off.
    Disconnect(Interrupt),
}

#[derive(Default)]
struct State {
    bytes: BTreeMap<RegionIndex, Vec<u8>>,
    connected: BTreeMap<Interrupt, Vec<Option<EventFd>>>,
    calls: Vec<IrqCall>,
    pin: Pin,
    /// How it is, and what is left to read or was written of its state; `None` is the state of a device that failed.
    migration: Option<(DeviceState, VecDeque<u8>)>,
    vf_token: Option<VfToken>,
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
        let eventfd = eventfds.and_then(|all| all.get(vector)?.as_ref());
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

    /// Lets vectors of MSI-X be added while it is on, as kernels from 6.4 on do on many machines.
    pub fn growing(mut self) -> Self {
        self.grows = true;
        self
    }

    /// Puts the device into a slot.
    pub fn in_slot(mut self, slot: &Arc<FakeSlot>) -> Self {
        self.slot = Some(Arc::clone(slot));
        self
    }

    /// Makes the device a physical function: it takes a VF token.
    pub fn physical(mut self) -> Self {
        self.physical = true;
        self
    }

    /// The VF token that was set.
    pub fn vf_token(&self) -> Option<VfToken> {
        lock(&self.state).vf_token
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

    /// How many vectors of a kind signal an eventfd.
    pub fn connected(&self, interrupt: Interrupt) -> usize {
        let state = lock(&self.state);
        let vectors = state.connected.get(&interrupt).into_iter().flatten();
        vectors.filter(|vector| vector.is_some()).count()
    }

    /// What changed what is signalled since the last time that this was asked, in its order: with a kernel each is an ioctl.
    pub fn take_irq_calls(&self) -> Vec<IrqCall> {
        std::mem::take(&mut lock(&self.state).calls)
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

    fn grows(&self, interrupt: Interrupt) -> bool {
        self.grows && interrupt == Interrupt::Msix
    }

    fn connect(
        &self,
        interrupt: Interrupt,
        first: u32,
        eventfds: &[Option<&EventFd>],
    ) -> io::Result<()> {
        use Interrupt::{Intx, Msi, Msix};
        let there = VfioDevice::vectors(self, interrupt);
        let (Ok(first), Ok(there)) = (usize::try_from(first), usize::try_from(there)) else {
            return Err(ErrorKind::InvalidInput.into());
        };
        let end = first.saturating_add(eventfds.len());
        let copies = eventfds.iter().map(|eventfd| match eventfd {
            Some(eventfd) => eventfd.try_clone().map(Some),
            None => Ok(None),
        });
        let copies = copies.collect::<io::Result<Vec<_>>>()?;
        let mut state = lock(&self.state);
        let given = eventfds.iter().map(Option::is_some).collect();
        let number = u32::try_from(first).unwrap_or(u32::MAX);
        state.calls.push(IrqCall::Connect(interrupt, number, given));
        let exclusive = [Intx, Msi, Msix];
        let other = |kind: &Interrupt| *kind != interrupt && state.connected.contains_key(kind);
        let taken = exclusive.contains(&interrupt) && exclusive.iter().any(other);
        let on = state.connected.get(&interrupt).map(Vec::len);
        let beyond = on.is_some_and(|on| end > on) && !self.grows(interrupt);
        if eventfds.is_empty() || end > there || taken || beyond {
            return Err(ErrorKind::InvalidInput.into());
        }
        if interrupt == Intx {
            state.pin.masked = false;
            state.pin.unmask = None;
        }
        let vectors = state.connected.entry(interrupt).or_default();
        vectors.resize_with(vectors.len().max(end), || None);
        for (vector, eventfd) in vectors.iter_mut().skip(first).zip(copies) {
            *vector = eventfd;
        }
        if interrupt == Intx {
            state.signal_pin();
        }
        Ok(())
    }

    fn disconnect(&self, interrupt: Interrupt) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.calls.push(IrqCall::Disconnect(interrupt));
        if interrupt == Interrupt::Intx {
            state.pin.masked = false;
            state.pin.unmask = None;
        }
        state.connected.remove(&interrupt);
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

    fn slot(&self) -> io::Result<Vec<SlotFunction>> {
        let slot = self.slot.as_ref().ok_or(ErrorKind::Unsupported)?;
        Ok(slot.functions())
    }

    fn reset_slot(&self) -> io::Result<()> {
        let slot = self.slot.as_ref().ok_or(ErrorKind::Unsupported)?;
        slot.reset()
    }

    fn set_vf_token(&self, token: VfToken) -> io::Result<()> {
        if !self.physical {
            return Err(ErrorKind::Unsupported.into());
        }
        lock(&self.state).vf_token = Some(token);
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
