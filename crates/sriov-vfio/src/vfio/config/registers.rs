use std::ops::Range;

use pio_mmio_bus::pci::spec::{BAR0, COMMAND, CONFIG_SPACE_SIZE, Command, INTERRUPT_PIN, msi};
use pio_mmio_bus::pci::{BarKind, InterruptPin};

/// A BAR as the device has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysicalBar {
    /// Number of its first register, 0 to 5.
    pub index: usize,
    /// What it decodes.
    pub kind: BarKind,
    /// Size in bytes, see [`BarKind::allows`].
    pub size: u64,
}

/// Where a device has its MSI-X table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixPlace {
    /// Offset of the capability.
    pub capability: usize,
    /// How many vectors.
    pub vectors: u16,
    /// The BAR that holds the table, and its offset there.
    pub table: (u8, u32),
    /// The BAR that holds the pending bits, and their offset there.
    pub pending: (u8, u32),
}

/// Where a device has MSI, and in which of its forms (PCIe §7.7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiPlace {
    /// Offset of the capability.
    pub capability: usize,
    /// How many vectors it asks for: 1, 2, 4, 8, 16 or 32.
    pub vectors: u8,
    /// Its address has 64 bits.
    pub address_64: bool,
    /// It has mask and pending bits.
    pub masking: bool,
}

impl MsiPlace {
    /// What the message control register `control` at `capability` says.
    pub(super) fn new(capability: usize, control: u16) -> Self {
        let control = msi::Control::from_bits_retain(control);
        let [log2, _] = ((control & msi::Control::CAPABLE).bits() >> 1).to_le_bytes();
        Self {
            capability,
            // 6 and 7 are reserved.
            vectors: 1 << log2.min(5),
            address_64: control.contains(msi::Control::ADDRESS_64),
            masking: control.contains(msi::Control::PER_VECTOR_MASKING),
        }
    }

    /// Offset of the message data from the start of the capability.
    pub(super) fn data(&self) -> usize {
        match self.address_64 {
            true => msi::DATA,
            false => msi::ADDRESS_UPPER,
        }
    }

    /// Bytes of the capability.
    pub(super) fn length(&self) -> usize {
        let after_data = match self.masking {
            true => msi::LENGTH - msi::DATA,
            false => 2,
        };
        self.data() + after_data
    }

    /// Where the pending bits are in configuration space, if it has any.
    pub(in crate::vfio) fn pending(&self) -> Option<usize> {
        let offset = self.capability + self.data() + (msi::PENDING - msi::DATA);
        self.masking.then_some(offset)
    }

    /// The registers as `config` keeps them, in the largest form.
    pub(in crate::vfio) fn registers(&self, config: &VirtualConfig) -> [u8; msi::LENGTH] {
        let kept = config.kept(self.capability..self.capability + self.length());
        let address = kept.get(..self.data()).unwrap_or_default();
        let rest = kept.get(self.data()..).unwrap_or_default();
        let mut registers = [0; msi::LENGTH];
        for (from, at) in [(address, 0), (rest, msi::DATA)] {
            for (to, from) in registers.iter_mut().skip(at).zip(from) {
                *to = *from;
            }
        }
        registers
    }
}

/// What a write asks for beyond the registers that the VMM keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// What goes to the device: offset and bytes, with a mask of the bits that are the guest's; the others stay as the device has
    /// them.
    pub forwarded: Vec<(u16, Vec<u8>, Vec<u8>)>,
    /// The function is to be reset, and nothing else.
    pub reset: bool,
}

/// The configuration space of a device as a guest sees it. Each bit is kept here or read from the device; and what is
/// written is kept, goes to the device, both, or is dropped. What no policy names reads 0 and drops writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualConfig {
    pub(super) value: Vec<u8>,
    /// What `value` is after a reset.
    pub(super) initial: Vec<u8>,
    /// Bits that read as the device has them.
    pub(super) physical: Vec<u8>,
    /// Bits of `value` that the guest may change.
    pub(super) writable: Vec<u8>,
    /// Bits that go to the device when they are written.
    pub(super) forwarded: Vec<u8>,
    pub(super) bars: Vec<PhysicalBar>,
    pub(super) msix: Option<MsixPlace>,
    pub(super) msi: Option<MsiPlace>,
    /// The byte and bit that ask for a reset.
    pub(super) reset: Option<(usize, u8)>,
    /// Whether the device says that it can reset the function.
    pub(super) resets_itself: bool,
}

impl VirtualConfig {
    /// The BARs.
    pub fn bars(&self) -> &[PhysicalBar] {
        &self.bars
    }

    /// Where MSI-X is, if the device has it.
    pub fn msix(&self) -> Option<MsixPlace> {
        self.msix
    }

    /// Where MSI is, if the device has it.
    pub fn msi(&self) -> Option<MsiPlace> {
        self.msi
    }

    /// Says that MSI has no more than `vectors` vectors, a power of two.
    pub fn limit_msi(&mut self, vectors: u8) {
        let Some(place) = &mut self.msi else {
            return;
        };
        place.vectors = place.vectors.min(vectors);
        let [log2, ..] = place.vectors.trailing_zeros().to_le_bytes();
        let offset = place.capability + msi::CONTROL;
        for registers in [&mut self.value, &mut self.initial] {
            if let Some(low) = registers.get_mut(offset) {
                let [capable, _] = msi::Control::CAPABLE.bits().to_le_bytes();
                *low = *low & !capable | log2 << 1;
            }
        }
    }

    /// Whether the device has a function-level reset, which the guest may ask for by PCI Express alone.
    pub fn resets_itself(&self) -> bool {
        self.resets_itself
    }

    /// The interrupt pin that the guest sees.
    pub fn interrupt_pin(&self) -> Option<InterruptPin> {
        use InterruptPin::{A, B, C, D};
        let register = self.value.get(INTERRUPT_PIN).copied();
        let mut pins = [A, B, C, D].into_iter();
        pins.find(|pin| Some(pin.register()) == register)
    }

    /// Where the guest has a BAR, as long as it lets the function decode it.
    pub fn bar_base(&self, bar: &PhysicalBar) -> Option<u64> {
        let enabled = match bar.kind {
            BarKind::Io => Command::IO,
            _ => Command::MEMORY,
        };
        let register = |index: usize| self.u32(BAR0 + 4 * index);
        let low = u64::from(register(bar.index) & !bar.kind.flags());
        let base = match bar.kind {
            BarKind::Memory64 { .. } => u64::from(register(bar.index + 1)) << 32 | low,
            _ => low,
        };
        self.command().contains(enabled).then_some(base)
    }

    /// The command register as the guest wrote it.
    pub fn command(&self) -> Command {
        let [low, high, ..] = self.u32(COMMAND).to_le_bytes();
        Command::from_bits_truncate(u16::from_le_bytes([low, high]))
    }

    /// The registers of `range` as they are kept; empty outside configuration space.
    pub fn kept(&self, range: Range<usize>) -> &[u8] {
        self.value.get(range).unwrap_or_default()
    }

    /// Keeps these bytes, whatever the guest may write there.
    pub(in crate::vfio) fn keep(&mut self, offset: usize, bytes: &[u8]) {
        for (to, from) in self.value.iter_mut().skip(offset).zip(bytes) {
            *to = *from;
        }
    }

    fn u32(&self, offset: usize) -> u32 {
        let bytes = self.value.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }

    /// Whether a read of these bytes depends on the device.
    pub fn reads_device(&self, offset: u16, length: usize) -> bool {
        let bits = self.physical.iter().skip(offset.into()).take(length);
        bits.into_iter().any(|&bits| bits != 0)
    }

    /// A read: `data` holds what the device answered, if it was asked. Bytes beyond the end read as ones.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let start = usize::from(offset);
        let end = CONFIG_SPACE_SIZE.saturating_sub(start).min(data.len());
        let (inside, outside) = data.split_at_mut(end);
        outside.fill(0xff);
        let kept = self.value.iter().zip(&self.physical).skip(start);
        for (byte, (value, physical)) in inside.iter_mut().zip(kept) {
            *byte = *value & !physical | *byte & physical;
        }
    }

    /// A write.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Effects {
        let start = usize::from(offset);
        let mut effects = Effects::default();
        if let Some((at, bit)) = self.reset
            && let Some(byte) = at.checked_sub(start).and_then(|at| data.get(at))
            && byte & bit != 0
        {
            self.value.copy_from_slice(&self.initial);
            effects.reset = true;
            return effects;
        }
        let masks = self.writable.iter().zip(&self.forwarded).skip(start);
        let kept = self.value.iter_mut().skip(start).zip(masks);
        let mut open = false;
        for ((at, &byte), (value, (writable, &forwarded))) in
            (offset..=u16::MAX).zip(data).zip(kept)
        {
            *value = *value & !writable | byte & writable;
            if forwarded == 0 {
                open = false;
                continue;
            }
            if !open {
                effects.forwarded.push((at, Vec::new(), Vec::new()));
                open = true;
            }
            if let Some((_, bytes, mask)) = effects.forwarded.last_mut() {
                bytes.push(byte);
                mask.push(forwarded);
            }
        }
        effects
    }

    /// What the guest wrote, for [`restore`](Self::restore).
    pub(in crate::vfio) fn save(&self) -> Vec<u8> {
        let kept = self.value.iter().zip(&self.initial).zip(&self.writable);
        kept.map(|((value, initial), writable)| value & writable | initial & !writable)
            .collect()
    }

    /// Takes over what [`save`](Self::save) gave. Refuses, and changes nothing, where that differs from what the guest could have
    /// written; returns the offset.
    pub(in crate::vfio) fn restore(&mut self, saved: &[u8]) -> Result<(), usize> {
        let kept = saved.iter().zip(&self.initial).zip(&self.writable);
        let differs =
            |((saved, initial), writable): ((&u8, &u8), &u8)| (saved ^ initial) & !writable != 0;
        if saved.len() != self.value.len() {
            return Err(saved.len().min(self.value.len()));
        }
        if let Some(offset) = kept.into_iter().position(differs) {
            return Err(offset);
        }
        self.value.copy_from_slice(saved);
        Ok(())
    }

    /// As after a reset.
    pub fn reset(&mut self) {
        self.value.copy_from_slice(&self.initial);
    }
}
