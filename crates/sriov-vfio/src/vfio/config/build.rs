use pio_mmio_bus::pci::BarKind;
use pio_mmio_bus::pci::spec::{
    BAR0, CACHE_LINE_SIZE, CAPABILITIES_POINTER, COMMAND, CONFIG_SPACE_SIZE, CONVENTIONAL_SIZE,
    Command, DEVICE_ID, FIRST_CAPABILITY, HEADER_TYPE, INTERRUPT_LINE, INTERRUPT_PIN,
    MULTI_FUNCTION, REVISION_ID, STATUS, SUBSYSTEM_VENDOR_ID, Status, VENDOR_ID, bar, express, msi,
    msix,
};

use super::policy::{Policy, Treatment};
use super::registers::{MsiPlace, MsixPlace, PhysicalBar, VirtualConfig};
use crate::capability::{CapabilityError, ExtendedCapabilities};
use crate::spec::capability;
use crate::spec::sriov::{FIRST_EXTENDED, Header};

/// Why a device cannot be shown to a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigPolicyError {
    /// It is a bridge, or nothing answers.
    #[error("header type {0:#04x}, only endpoints can be assigned")]
    Header(u8),
    /// The list of capabilities leaves configuration space or loops.
    #[error("the list of capabilities is broken at {0:#x}")]
    Capabilities(usize),
    /// The list of extended capabilities is broken.
    #[error(transparent)]
    Extended(#[from] CapabilityError),
    /// A BAR does not exist, overlaps another or has an impossible size.
    #[error("BAR {0:?}: no such register, taken, or no possible size")]
    Bar(PhysicalBar),
    /// The MSI-X table or its pending bits are in no BAR, or leave it.
    #[error("MSI-X {0:?} does not fit into the BARs")]
    Msix(MsixPlace),
}

impl VirtualConfig {
    /// What `policy` shows of a device with the configuration space `config` (256 or 4096 bytes) and these BARs.
    pub fn new(
        config: &[u8],
        bars: &[PhysicalBar],
        policy: Policy,
    ) -> Result<Self, ConfigPolicyError> {
        let mut device = vec![0; CONFIG_SPACE_SIZE];
        for (to, from) in device.iter_mut().zip(config) {
            *to = *from;
        }
        let zeroes = || vec![0; CONFIG_SPACE_SIZE];
        let mut built = Self {
            value: zeroes(),
            initial: Vec::new(),
            physical: zeroes(),
            writable: zeroes(),
            forwarded: zeroes(),
            bars: bars.to_vec(),
            msix: None,
            msi: None,
            reset: None,
            resets_itself: false,
        };
        let [header] = bytes(&device, HEADER_TYPE);
        if header & !MULTI_FUNCTION != 0 {
            return Err(ConfigPolicyError::Header(header));
        }
        built.header(&device, policy);
        built.place_bars()?;
        built.standard(&device, policy)?;
        if config.len() > CONVENTIONAL_SIZE {
            built.extended(&device, policy)?;
        }
        built.check_msix()?;
        built.initial.clone_from(&built.value);
        Ok(built)
    }

    fn header(&mut self, device: &[u8], policy: Policy) {
        for (offset, length) in [(VENDOR_ID, 4), (REVISION_ID, 4), (SUBSYSTEM_VENDOR_ID, 4)] {
            put(&mut self.value, offset, part(device, offset, length));
        }
        if let Some((vendor, id)) = policy.identity {
            put(&mut self.value, VENDOR_ID, &vendor.to_le_bytes());
            put(&mut self.value, DEVICE_ID, &id.to_le_bytes());
        }
        let forwarded = Command::BUS_MASTER | Command::INTX_DISABLE;
        put(
            &mut self.forwarded,
            COMMAND,
            &forwarded.bits().to_le_bytes(),
        );
        let kept = forwarded | Command::PARITY | Command::SERR;
        put(&mut self.writable, COMMAND, &kept.bits().to_le_bytes());
        let clearable = Status::CLEARABLE.bits().to_le_bytes();
        put(
            &mut self.physical,
            STATUS,
            &(Status::CLEARABLE | Status::INTERRUPT).bits().to_le_bytes(),
        );
        put(&mut self.forwarded, STATUS, &clearable);
        put(&mut self.writable, CACHE_LINE_SIZE, &[0xff]);
        put(&mut self.writable, INTERRUPT_LINE, &[0xff]);
        if policy.intx {
            put(
                &mut self.value,
                INTERRUPT_PIN,
                part(device, INTERRUPT_PIN, 1),
            );
        }
    }

    fn place_bars(&mut self) -> Result<(), ConfigPolicyError> {
        let mut free = [true; 6];
        for place in self.bars.clone() {
            let error = ConfigPolicyError::Bar(place);
            if !place.kind.allows(place.size) {
                return Err(error);
            }
            for index in place.index..place.index.saturating_add(place.kind.registers()) {
                match free.get_mut(index) {
                    Some(free) if *free => *free = false,
                    _ => return Err(error),
                }
            }
            let (flags, enabled) = match place.kind {
                BarKind::Io => (bar::IO_FLAGS, Command::IO),
                _ => (bar::MEMORY_FLAGS, Command::MEMORY),
            };
            let offset = BAR0 + 4 * place.index;
            put(&mut self.value, offset, &place.kind.flags().to_le_bytes());
            let mask = (!(place.size - 1) & !flags).to_le_bytes();
            put(
                &mut self.writable,
                offset,
                part(&mask, 0, 4 * place.kind.registers()),
            );
            let [low, high] = enabled.bits().to_le_bytes();
            for (byte, bits) in self.writable.iter_mut().skip(COMMAND).zip([low, high]) {
                *byte |= bits;
            }
        }
        Ok(())
    }

    /// Links the capabilities that are shown, in the device's order and places.
    fn standard(&mut self, device: &[u8], policy: Policy) -> Result<(), ConfigPolicyError> {
        let status = Status::from_bits_truncate(u16::from_le_bytes(bytes(device, STATUS)));
        if !status.contains(Status::CAPABILITIES) {
            return Ok(());
        }
        let mut places = Vec::new();
        let [mut at] = bytes(device, CAPABILITIES_POINTER);
        while at & !3 != 0 {
            let offset = usize::from(at & !3);
            if offset < FIRST_CAPABILITY || places.contains(&offset) {
                return Err(ConfigPolicyError::Capabilities(offset));
            }
            places.push(offset);
            [_, at] = bytes(device, offset);
        }
        let mut link = CAPABILITIES_POINTER;
        for &offset in &places {
            let [id, _, low, high] = bytes(device, offset);
            let (treatment, length) = policy.standard(id, u16::from_le_bytes([low, high]));
            let [features] = bytes(device, offset + capability::ADVANCED_CAPABILITIES);
            self.resets_itself |=
                id == capability::ADVANCED_FEATURES && features & capability::ADVANCED_RESET != 0;
            if treatment == Treatment::Hidden || length < 3 {
                continue;
            }
            let Ok(pointer) = u8::try_from(offset) else {
                continue;
            };
            let end = end(offset, length, &places, CONVENTIONAL_SIZE);
            if treatment != Treatment::Direct && end < offset + length {
                return Err(ConfigPolicyError::Capabilities(offset));
            }
            self.treat(device, treatment, offset..end, 2);
            put(&mut self.value, offset, &[id, 0]);
            put(&mut self.value, link, &[pointer]);
            put(
                &mut self.value,
                STATUS,
                &Status::CAPABILITIES.bits().to_le_bytes(),
            );
            link = offset + 1;
        }
        Ok(())
    }

    /// The same for extended ones. The list begins at a fixed place: if what is there is hidden, an empty header holds the link.
    fn extended(&mut self, device: &[u8], policy: Policy) -> Result<(), ConfigPolicyError> {
        let all = ExtendedCapabilities::new(device).collect::<Result<Vec<_>, _>>()?;
        let places: Vec<usize> = all.iter().map(|(offset, _)| (*offset).into()).collect();
        let mut last: Option<(u16, Header)> = None;
        for (offset, header) in all {
            let start = usize::from(offset);
            let vendor_header = u32::from_le_bytes(bytes(device, start + 4));
            let (treatment, length) = policy.extended(header.id(), vendor_header);
            if treatment == Treatment::Hidden || length <= size_of::<Header>() {
                continue;
            }
            let end = end(start, length, &places, CONFIG_SPACE_SIZE);
            self.treat(device, treatment, start..end, size_of::<Header>());
            let (before, its) = last.unwrap_or((FIRST_EXTENDED, Header(0)));
            if before != offset {
                let linked = Header::new(its.id(), its.version(), offset);
                put(&mut self.value, before.into(), &linked.0.to_le_bytes());
            }
            let shown = Header::new(header.id(), header.version(), 0);
            put(&mut self.value, start, &shown.0.to_le_bytes());
            last = Some((offset, shown));
        }
        Ok(())
    }

    /// Opens a capability as far as its treatment says; the header, of `header` bytes, is always kept here.
    fn treat(
        &mut self,
        device: &[u8],
        treatment: Treatment,
        range: std::ops::Range<usize>,
        header: usize,
    ) {
        let body = range.start + header..range.end;
        let ones = vec![0xff; body.len()];
        let start = range.start;
        match treatment {
            Treatment::Hidden => {}
            Treatment::ReadOnly => put(&mut self.physical, body.start, &ones),
            Treatment::Direct => {
                put(&mut self.physical, body.start, &ones);
                put(&mut self.forwarded, body.start, &ones);
            }
            Treatment::Power => {
                let offset = start + capability::POWER_CAPABILITIES;
                let events = !capability::POWER_EVENTS;
                let shown = u16::from_le_bytes(bytes(device, offset)) & events;
                put(&mut self.value, offset, &shown.to_le_bytes());
                let offset = start + capability::POWER_CONTROL;
                put(
                    &mut self.value,
                    offset,
                    &capability::NO_SOFT_RESET.to_le_bytes(),
                );
                put(
                    &mut self.writable,
                    offset,
                    &capability::POWER_STATE.to_le_bytes(),
                );
            }
            Treatment::Express => {
                put(&mut self.physical, body.start, &ones);
                // What controls device and link is kept, and the device's stays as the host set it.
                for control in [
                    express::DEVICE_CONTROL,
                    express::LINK_CONTROL,
                    express::DEVICE_CONTROL_2,
                    express::LINK_CONTROL_2,
                ] {
                    let offset = start + control;
                    if offset + 2 > range.end {
                        continue;
                    }
                    put(&mut self.physical, offset, &[0, 0]);
                    put(&mut self.value, offset, part(device, offset, 2));
                    put(&mut self.writable, offset, &[0xff, 0x7f]);
                }
                let clearable = express::DEVICE_STATUS_CLEARABLE.to_le_bytes();
                put(
                    &mut self.forwarded,
                    start + express::DEVICE_STATUS,
                    &clearable,
                );
                let features =
                    u32::from_le_bytes(bytes(device, start + express::DEVICE_CAPABILITIES));
                let [.., upper] = express::DeviceControl::INITIATE_RESET.bits().to_le_bytes();
                if let Some(byte) = self.value.get_mut(start + express::DEVICE_CONTROL + 1) {
                    *byte &= !upper;
                }
                if features & express::FUNCTION_LEVEL_RESET != 0 {
                    self.reset = Some((start + express::DEVICE_CONTROL + 1, upper));
                    self.resets_itself = true;
                }
            }
            Treatment::Msi => {
                let control = u16::from_le_bytes(bytes(device, start + msi::CONTROL));
                self.place_msi(MsiPlace::new(start, control));
            }
            Treatment::Msix => {
                put(&mut self.value, start, part(device, start, msix::LENGTH));
                let control = u16::from_le_bytes(bytes(device, start + msix::CONTROL));
                let size = control & (msix::MAX_VECTORS - 1);
                put(&mut self.value, start + msix::CONTROL, &size.to_le_bytes());
                let writable = msix::Control::all().bits().to_le_bytes();
                put(&mut self.writable, start + msix::CONTROL, &writable);
                let place = |offset: usize| {
                    let register = u32::from_le_bytes(bytes(device, start + offset));
                    let [low, ..] = register.to_le_bytes();
                    (low & 7, register & !7)
                };
                self.msix = Some(MsixPlace {
                    capability: start,
                    vectors: size + 1,
                    table: place(msix::TABLE),
                    pending: place(msix::PBA),
                });
            }
        }
    }

    /// MSI as `place` says, without what the guest has not written yet.
    fn place_msi(&mut self, place: MsiPlace) {
        use msi::Control;
        let start = place.capability;
        let [log2, ..] = place.vectors.trailing_zeros().to_le_bytes();
        let mut control = Control::capable(log2.into());
        control.set(Control::ADDRESS_64, place.address_64);
        control.set(Control::PER_VECTOR_MASKING, place.masking);
        let offset = start + msi::CONTROL;
        put(&mut self.value, offset, &control.bits().to_le_bytes());
        let granted = (Control::ENABLE | Control::ENABLED).bits().to_le_bytes();
        put(&mut self.writable, offset, &granted);
        let mut address = [0xff; 8];
        address[0] = 0xfc;
        let data = place.data();
        let address = part(&address, 0, data - msi::ADDRESS);
        put(&mut self.writable, start + msi::ADDRESS, address);
        put(&mut self.writable, start + data, &[0xff; 2]);
        if place.masking {
            let masks = u32::MAX >> (32 - u32::from(place.vectors));
            let offset = start + data + (msi::MASK - msi::DATA);
            put(&mut self.writable, offset, &masks.to_le_bytes());
        }
        self.msi = Some(place);
    }

    fn check_msix(&self) -> Result<(), ConfigPolicyError> {
        let Some(place) = self.msix else {
            return Ok(());
        };
        let fits = |(index, offset): (u8, u32), length: u64| {
            let bar = self.bars.iter().find(|bar| bar.index == usize::from(index));
            bar.is_some_and(|bar| {
                bar.kind != BarKind::Io && u64::from(offset).saturating_add(length) <= bar.size
            })
        };
        let vectors = u64::from(place.vectors);
        let pending = vectors.div_ceil(64) * 8;
        if !fits(place.table, vectors * msix::ENTRY_SIZE) || !fits(place.pending, pending) {
            return Err(ConfigPolicyError::Msix(place));
        }
        Ok(())
    }
}

/// Where a capability ends that says it has `length` bytes: not behind the start of another, nor of configuration space.
fn end(start: usize, length: usize, places: &[usize], limit: usize) -> usize {
    let others = places.iter().copied().filter(|&other| other > start);
    let next = others.min().unwrap_or(limit);
    start.saturating_add(length).min(next)
}

/// Some bytes; zeroes behind the end.
fn bytes<const N: usize>(from: &[u8], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    for (to, from) in bytes.iter_mut().zip(from.iter().skip(offset)) {
        *to = *from;
    }
    bytes
}

/// As many of some bytes as there are.
fn part(from: &[u8], offset: usize, length: usize) -> &[u8] {
    let rest = from.get(offset..).unwrap_or_default();
    rest.get(..length).unwrap_or(rest)
}

fn put(target: &mut [u8], offset: usize, bytes: &[u8]) {
    for (to, from) in target.iter_mut().skip(offset).zip(bytes) {
        *to = *from;
    }
}
