use std::ops::Range;

use pio_mmio_bus::pci::BarKind;
use pio_mmio_bus::pci::spec::{BAR0, COMMAND, CONFIG_SPACE_SIZE, Command};

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
    /// The byte and bit that ask for a reset.
    pub(super) reset: Option<(usize, u8)>,
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

    /// As after a reset.
    pub fn reset(&mut self) {
        self.value.copy_from_slice(&self.initial);
    }
}
