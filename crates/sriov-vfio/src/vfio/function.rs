use std::collections::BTreeSet;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pio_mmio_bus::bus::{AccessError, BusDevice, BusError};
use pio_mmio_bus::interrupt::MsiRouter;
use pio_mmio_bus::pci::spec::{BAR0, COMMAND, CONFIG_SPACE_SIZE, Command, bar, msix};
use pio_mmio_bus::pci::{
    BarKind, DecodedRegion, Decoder, InterruptPin, Msix, PciFunction, RequesterId, VectorsError,
};
use vmm_sys_util::eventfd::EventFd;

use super::config::{ConfigPolicyError, Effects, MsixPlace, PhysicalBar, Policy, VirtualConfig};
use super::device::{Holder, Interrupt, RegionIndex, VfioDevice};
use super::interrupts::Interrupts;
use super::migration::{self, AssignedState, DeviceState, Migration, MigrationError};
use super::window::{BarWindows, GuestWindows};
use crate::sysfs::PciAddress;

/// [`COMMAND`] as configuration accesses have it.
const COMMAND_REGISTER: u16 = 0x04;
/// What shares a page with a table that is trapped is trapped too.
const PAGE: u64 = 4096;

/// Why a device could not be assigned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AssignError {
    /// Its configuration space cannot be shown.
    #[error(transparent)]
    Config(#[from] ConfigPolicyError),
    /// Its vectors got no routes.
    #[error(transparent)]
    Vectors(#[from] VectorsError),
    /// The bus refused the region of a BAR.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// The device does not answer.
    #[error("configuration space: {0}")]
    Device(#[from] io::Error),
}

/// What the VMM is told of a device, and the guest is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It had an uncorrectable error: the guest must not go on with it.
    Error,
    /// The host asks for it back, and waits until this process has closed it.
    Request,
}

/// A VFIO device as a function on a guest's bus.
pub struct AssignedFunction {
    device: Arc<dyn VfioDevice>,
    shown: Mutex<Shown>,
    interrupts: Arc<Interrupts>,
    bars: Vec<(PhysicalBar, DecodedRegion)>,
    failed: Arc<AtomicBool>,
}

struct Shown {
    config: VirtualConfig,
    upstream: bool,
}

impl AssignedFunction {
    /// Puts `device` under `policy`. BARs are placed by `decoder`, vectors of MSI and MSI-X get routes of `router`.
    pub fn new(
        device: Arc<dyn VfioDevice>,
        mut policy: Policy,
        decoder: &Arc<Decoder>,
        router: &dyn MsiRouter,
    ) -> Result<Arc<Self>, AssignError> {
        policy.intx &= device.vectors(Interrupt::Intx) != 0;
        let size = device.region(RegionIndex::Config).size;
        let size =
            usize::try_from(size).map_or(CONFIG_SPACE_SIZE, |size| size.min(CONFIG_SPACE_SIZE));
        let mut bytes = vec![0; size];
        device.read(RegionIndex::Config, 0, &mut bytes)?;
        let bars = physical_bars(&*device, &bytes);
        let mut config = VirtualConfig::new(&bytes, &bars, policy)?;
        let interrupts = Interrupts::new(Arc::clone(&device), &mut config, router)?;
        let (interrupts, failed) = (Arc::new(interrupts), Arc::default());
        let mut regions = Vec::new();
        for place in bars {
            let index = RegionIndex::Bar(u8::try_from(place.index).unwrap_or(u8::MAX));
            let trapped = AssignedBar {
                device: Arc::clone(&device),
                index,
                interrupts: Arc::clone(&interrupts),
                failed: Arc::clone(&failed),
            };
            let name = format!("assigned BAR {}", place.index);
            let region = decoder.region(place.kind, place.size, &name, Arc::new(trapped))?;
            regions.push((place, region));
        }
        // The device decodes its BARs from now on; the guest's bits only place them on its bus.
        let mut command = Command::from_bits_truncate(device_command(&*device)?);
        command |= Command::MEMORY | Command::IO;
        device.write(
            RegionIndex::Config,
            COMMAND as u64,
            &command.bits().to_le_bytes(),
        )?;
        Ok(Arc::new(Self {
            device,
            shown: Mutex::new(Shown {
                config,
                upstream: true,
            }),
            interrupts,
            bars: regions,
            failed,
        }))
    }

    /// MSI-X, if the device has it.
    pub fn msix(&self) -> Option<&Arc<Msix>> {
        self.interrupts.msix().map(|(_, msix)| msix)
    }

    /// The parts of a BAR that may be mapped into the guest: what the kernel allows, in whole pages, without those of the MSI-X table and
    /// pending bits.
    pub fn mappable(&self, index: u8) -> Vec<Range<u64>> {
        let mut parts = self.device.region(RegionIndex::Bar(index)).mappable;
        parts.retain(|part| (part.start | part.end).is_multiple_of(PAGE));
        if let Some((place, msix)) = self.interrupts.msix() {
            for (bar, trapped) in [table(place, msix), pending(place, msix)] {
                if bar == index {
                    let start = trapped.start / PAGE * PAGE;
                    let end = trapped.end.next_multiple_of(PAGE);
                    parts = parts
                        .into_iter()
                        .flat_map(|part| without(part, start..end))
                        .collect();
                }
            }
        }
        parts
    }

    /// Lets the guest reach what is mappable of the BARs without exits, wherever it places them. To be called before the guest runs;
    /// returns how many parts that is.
    pub fn show_bars(&self, windows: &dyn GuestWindows) -> io::Result<usize> {
        let mut shown = 0;
        for (bar, region) in &self.bars {
            let index = u8::try_from(bar.index).unwrap_or(u8::MAX);
            let mut parts = Vec::new();
            for part in self.mappable(index) {
                let memory = self.device.map(RegionIndex::Bar(index), part.clone())?;
                parts.push((part.start, windows.window(memory)?));
            }
            shown += parts.len();
            region.set_follower(Arc::new(BarWindows {
                parts,
                failed: Arc::clone(&self.failed),
            }));
        }
        Ok(shown)
    }

    /// The pin that the guest sees, if the policy shows one and the kernel can deliver it. The VMM has to connect it.
    pub fn interrupt_pin(&self) -> Option<InterruptPin> {
        self.shown().config.interrupt_pin()
    }

    /// Lets the pin signal `trigger` whenever the guest enabled neither MSI nor MSI-X; the kernel masks it then, until `resample` is
    /// signalled, by KVM's resampling irqfd or by the VMM when the guest ends the interrupt.
    pub fn connect_intx(&self, trigger: &EventFd, resample: &EventFd) -> io::Result<()> {
        let pin = (trigger.try_clone()?, resample.try_clone()?);
        let shown = self.shown();
        self.interrupts.set_pin(pin);
        self.wire(&shown)
    }

    /// Lets `notice` signal `eventfd`. Whether there is such a notice of this device.
    pub fn connect_notice(&self, notice: Notice, eventfd: &EventFd) -> io::Result<bool> {
        let interrupt = match notice {
            Notice::Error => Interrupt::Error,
            Notice::Request => Interrupt::Request,
        };
        if self.device.vectors(interrupt) == 0 {
            return Ok(false);
        }
        let connected = self.device.connect(interrupt, 0, &[Some(eventfd)]);
        connected.map(|()| true)
    }

    /// Stops the device, or lets it run again. While it is stopped it neither reaches memory nor interrupts, and its BARs must not be
    /// accessed.
    pub fn set_running(&self, running: bool) -> Result<(), MigrationError> {
        let state = match running {
            true => DeviceState::Running,
            false => DeviceState::Stop,
        };
        Ok(self.migration()?.set_state(state)?)
    }

    /// Stops the device and saves what the guest can observe of it, the device's own part having at most `limit` bytes. On error the
    /// device may be let run again ([`set_running`](Self::set_running)).
    pub fn save(&self, limit: usize) -> Result<AssignedState, MigrationError> {
        let device = migration::save(self.migration()?, limit)?;
        let shown = self.shown();
        let (msix, msi_pending) = self.interrupts.save();
        Ok(AssignedState {
            config: shown.config.save(),
            msix,
            msi_pending,
            device,
        })
    }

    /// Takes over a saved state, before the guest runs; the device stays stopped. After an error the function must be reset before it is
    /// used.
    pub fn restore(&self, state: &AssignedState) -> Result<(), MigrationError> {
        let AssignedState {
            config,
            msix,
            msi_pending,
            device,
        } = state;
        let migration = self.migration()?;
        let mut shown = self.shown();
        let mut restored = shown.config.clone();
        restored.restore(config).map_err(MigrationError::Config)?;
        self.interrupts.restore(msix.as_ref(), *msi_pending)?;
        migration::load(migration, device)?;
        let [low, high] = restored.command().bits().to_le_bytes();
        // As if the guest wrote it: some of it is the device's.
        for (offset, bytes, mask) in restored.write(COMMAND_REGISTER, &[low, high]).forwarded {
            self.forward(offset, &bytes, &mask)?;
        }
        shown.config = restored;
        self.place_bars(&shown);
        Ok(self.wire(&shown)?)
    }

    fn migration(&self) -> Result<&dyn Migration, MigrationError> {
        self.device.migration().ok_or(MigrationError::Unsupported)
    }

    /// Whether the device refused something since the last call, an access to its configuration space, its vectors, a reset; or the
    /// VMM to show a BAR where the guest placed it.
    pub fn take_failure(&self) -> bool {
        self.failed.swap(false, Ordering::Relaxed)
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note<T>(&self, result: io::Result<T>) -> Option<T> {
        if result.is_err() {
            self.failed.store(true, Ordering::Relaxed);
        }
        result.ok()
    }

    /// Writes the guest's bits to the device and leaves the others as they are.
    fn forward(&self, offset: u16, bytes: &[u8], mask: &[u8]) -> io::Result<()> {
        let offset = offset.into();
        let mut merged = bytes.to_vec();
        if mask.iter().any(|&mask| mask != 0xff) {
            let mut now = vec![0; bytes.len()];
            self.device.read(RegionIndex::Config, offset, &mut now)?;
            for ((byte, now), mask) in merged.iter_mut().zip(now).zip(mask) {
                *byte = *byte & mask | now & !mask;
            }
        }
        self.device.write(RegionIndex::Config, offset, &merged)
    }

    /// Lets the registers take effect.
    fn apply(&self, shown: &Shown) {
        self.place_bars(shown);
        self.note(self.wire(shown));
    }

    fn place_bars(&self, shown: &Shown) {
        for (bar, region) in &self.bars {
            region.place(shown.config.bar_base(bar));
        }
    }

    fn wire(&self, shown: &Shown) -> io::Result<()> {
        let Shown { config, upstream } = shown;
        let master = config.command().contains(Command::BUS_MASTER);
        self.interrupts.apply(config, master && *upstream)
    }

    /// Before a reset: the registers are as after it, nothing is signalled, and no DMA begins any more, should the device not be reset.
    fn quiesce(&self, shown: &mut Shown) {
        shown.config.reset();
        self.place_bars(shown);
        self.note(self.interrupts.reset());
        let [master, _] = Command::BUS_MASTER.bits().to_le_bytes();
        self.note(self.forward(COMMAND_REGISTER, &[0], &[master]));
    }

    fn reset_alone(&self, shown: &mut Shown) {
        self.quiesce(shown);
        let alone = self.slot_mates(shown).is_some_and(|open| open.len() == 1);
        self.note(self.reset_device(alone));
        self.apply(shown);
    }

    /// The functions that this process has opened in the slot, if the slot's reset is the one for this function: it has none of its own,
    /// and nobody else has one there.
    fn slot_mates(&self, shown: &Shown) -> Option<Vec<PciAddress>> {
        if shown.config.resets_itself() {
            return None;
        }
        let mut slot = self.device.slot().ok()?;
        if slot.iter().any(|mate| mate.holder == Holder::Other) {
            return None;
        }
        slot.retain(|mate| mate.holder == Holder::Open);
        Some(slot.iter().map(|mate| mate.function).collect())
    }

    /// Resets the device, with its slot or by what the kernel finds for it alone.
    fn reset_device(&self, slot: bool) -> io::Result<()> {
        match slot {
            true => self.device.reset_slot().or_else(|_| self.device.reset()),
            false => self.device.reset(),
        }
    }
}

/// Resets all functions of a guest, which must not run: on return none of them has DMA in flight. Where a function has no reset of its own,
/// and all that this process has opened in its slot are among these, the slot is reset, once.
pub fn reset_functions(functions: &[(PciAddress, Arc<AssignedFunction>)]) {
    let mut shown: Vec<_> = (functions.iter())
        .map(|(_, function)| function.shown())
        .collect();
    for ((_, function), shown) in functions.iter().zip(&mut shown) {
        function.quiesce(shown);
    }
    let mut done = BTreeSet::new();
    for ((address, function), shown) in functions.iter().zip(&mut shown) {
        if done.contains(address) {
            continue;
        }
        let ours = |mate: &PciAddress| functions.iter().any(|(ours, _)| ours == mate);
        let mates = function.slot_mates(shown);
        if let Some(mates) = mates.filter(|mates| mates.iter().all(ours))
            && function.device.reset_slot().is_ok()
        {
            done.extend(mates);
        } else {
            function.note(function.device.reset());
        }
    }
    for ((_, function), shown) in functions.iter().zip(&shown) {
        function.apply(shown);
    }
}

impl PciFunction for AssignedFunction {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let mut shown = self.shown();
        self.interrupts.refresh(&mut shown.config);
        data.fill(0xff);
        if shown.config.reads_device(offset, data.len()) {
            let inside = CONFIG_SPACE_SIZE
                .saturating_sub(offset.into())
                .min(data.len());
            if let Some(inside) = data.get_mut(..inside) {
                self.note(self.device.read(RegionIndex::Config, offset.into(), inside));
            }
        }
        shown.config.read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut shown = self.shown();
        let Effects { forwarded, reset } = shown.config.write(offset, data);
        if reset {
            return self.reset_alone(&mut shown);
        }
        for (offset, bytes, mask) in forwarded {
            self.note(self.forward(offset, &bytes, &mask));
        }
        self.apply(&shown);
    }

    fn set_requester(&self, requester: RequesterId) {
        self.interrupts.set_requester(requester);
    }

    fn set_upstream(&self, forwarded: bool) {
        let mut shown = self.shown();
        shown.upstream = forwarded;
        self.apply(&shown);
    }

    fn reset(&self) {
        self.reset_alone(&mut self.shown());
    }
}

/// A BAR whose accesses are carried out by the device, but for MSI-X.
struct AssignedBar {
    device: Arc<dyn VfioDevice>,
    index: RegionIndex,
    interrupts: Arc<Interrupts>,
    failed: Arc<AtomicBool>,
}

/// Who answers an access.
enum Target<'a> {
    Device,
    Msix(&'a Msix, u64),
}

impl AssignedBar {
    fn target(&self, offset: u64, width: usize) -> Result<Target<'_>, AccessError> {
        let Some((place, msix)) = self.interrupts.msix() else {
            return Ok(Target::Device);
        };
        let end = offset.saturating_add(width as u64);
        for (own, (bar, range)) in [
            (0, table(place, msix)),
            (msix.pba_offset(), pending(place, msix)),
        ] {
            if self.index != RegionIndex::Bar(bar) || end <= range.start || range.end <= offset {
                continue;
            }
            // In part the table's: what that means, the device would decide.
            if offset < range.start || range.end < end {
                return Err(AccessError::Straddle { offset, width });
            }
            return Ok(Target::Msix(msix, own + (offset - range.start)));
        }
        Ok(Target::Device)
    }
}

impl BusDevice for AssignedBar {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        match self.target(offset, data.len())? {
            Target::Msix(msix, offset) => msix.read(offset, data),
            Target::Device => {
                let read = self.device.read(self.index, offset, data);
                read.map_err(|_| AccessError::NoRegister { offset })
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        match self.target(offset, data.len())? {
            Target::Msix(msix, offset) => {
                msix.write(offset, data)?;
                if self.interrupts.unmasked().is_err() {
                    self.failed.store(true, Ordering::Relaxed);
                }
                Ok(())
            }
            Target::Device => {
                let written = self.device.write(self.index, offset, data);
                written.map_err(|_| AccessError::NoRegister { offset })
            }
        }
    }
}

fn table(place: &MsixPlace, msix: &Msix) -> (u8, Range<u64>) {
    let start = u64::from(place.table.1);
    let length = u64::from(msix.vectors()) * msix::ENTRY_SIZE;
    (place.table.0, start..start + length)
}

fn pending(place: &MsixPlace, msix: &Msix) -> (u8, Range<u64>) {
    let start = u64::from(place.pending.1);
    let length = u64::from(msix.vectors()).div_ceil(64) * 8;
    (place.pending.0, start..start + length)
}

/// What is left of `part`.
fn without(part: Range<u64>, hole: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let before = part.start..part.end.min(hole.start);
    let after = part.start.max(hole.end)..part.end;
    [before, after]
        .into_iter()
        .filter(|part| part.start < part.end)
}

/// The BARs that the device has: sizes from its regions, kinds from its registers.
fn physical_bars(device: &dyn VfioDevice, config: &[u8]) -> Vec<PhysicalBar> {
    let mut bars = Vec::new();
    for index in 0..6 {
        let size = device.region(RegionIndex::Bar(index)).size;
        let register = config.get(BAR0 + 4 * usize::from(index)..);
        let register = register.and_then(|rest| rest.first_chunk());
        let register = register.map_or(0, |bytes| u32::from_le_bytes(*bytes));
        if size == 0 {
            continue;
        }
        let prefetchable = register & bar::PREFETCHABLE != 0;
        let kind = match register & 7 {
            register if register & bar::IO != 0 => BarKind::Io,
            bar::MEMORY_64 => BarKind::Memory64 { prefetchable },
            _ => BarKind::Memory32 { prefetchable },
        };
        bars.push(PhysicalBar {
            index: index.into(),
            kind,
            size,
        });
    }
    bars
}

fn device_command(device: &dyn VfioDevice) -> io::Result<u16> {
    let mut bytes = [0; 2];
    device.read(RegionIndex::Config, COMMAND as u64, &mut bytes)?;
    Ok(u16::from_le_bytes(bytes))
}
