use std::sync::Arc;

use super::decode::DecodedRegion;
use super::registers::Registers;
use super::spec::{BAR0, Command, bar};
use crate::bus::{AddressSpace, BusDevice};

/// What a base address register decodes (PCI §6.2.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory below 4 GiB.
    Memory32 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
    /// Memory anywhere; takes two registers.
    Memory64 {
        /// Reads have no side effects.
        prefetchable: bool,
    },
}

impl BarKind {
    /// The address space that it decodes.
    pub const fn space(self) -> AddressSpace {
        match self {
            Self::Io => AddressSpace::Pio,
            _ => AddressSpace::Mmio,
        }
    }

    /// How many registers it takes.
    pub const fn registers(self) -> usize {
        match self {
            Self::Memory64 { .. } => 2,
            _ => 1,
        }
    }

    /// The low bits that say what it is.
    pub const fn flags(self) -> u32 {
        let (kind, prefetchable) = match self {
            Self::Io => return bar::IO,
            Self::Memory32 { prefetchable } => (0, prefetchable),
            Self::Memory64 { prefetchable } => (bar::MEMORY_64, prefetchable),
        };
        kind | if prefetchable { bar::PREFETCHABLE } else { 0 }
    }

    /// Whether a BAR of this kind can have `size` bytes: a power of two, at least 4 for I/O and 16 for memory, and no
    /// more than half of what it can address (all of it for I/O: 64 KiB).
    pub const fn allows(self, size: u64) -> bool {
        let limits = match self {
            Self::Io => 4..=0x1_0000,
            Self::Memory32 { .. } => 16..=1 << 31,
            Self::Memory64 { .. } => 16..=1 << 63,
        };
        size.is_power_of_two() && *limits.start() <= size && size <= *limits.end()
    }

    /// The bits of the register(s) that hold what is written, for `size` bytes.
    const fn mask(self, size: u64) -> u64 {
        let flags = match self {
            Self::Io => bar::IO_FLAGS,
            _ => bar::MEMORY_FLAGS,
        };
        !(size - 1) & !flags
    }

    const fn enabled_by(self) -> Command {
        match self {
            Self::Io => Command::IO,
            _ => Command::MEMORY,
        }
    }
}

/// A BAR to be built: what it decodes and the device behind it.
pub struct Bar {
    /// What it decodes.
    pub kind: BarKind,
    /// Size in bytes, see [`BarKind::allows`].
    pub size: u64,
    /// What errors and reports call its region.
    pub name: String,
    /// What answers accesses to it.
    pub device: Arc<dyn BusDevice>,
}

/// A BAR of a function.
pub(super) struct PlacedBar {
    /// Number of its (first) register.
    pub(super) index: usize,
    pub(super) kind: BarKind,
    pub(super) region: DecodedRegion,
}

impl PlacedBar {
    pub(super) const fn offset(index: usize) -> usize {
        BAR0 + 4 * index
    }

    /// Gives the BAR its registers.
    pub(super) fn define(registers: &mut Registers, index: usize, kind: BarKind, size: u64) {
        let offset = Self::offset(index);
        let [a, b, c, d, upper @ ..] = kind.mask(size).to_le_bytes();
        registers.define(offset, &kind.flags().to_le_bytes());
        registers.make_writable(offset, &[a, b, c, d]);
        if kind.registers() == 2 {
            registers.make_writable(offset + 4, &upper);
        }
    }

    /// Decodes what the registers say.
    pub(super) fn decode(&self, registers: &Registers, command: Command) {
        let offset = Self::offset(self.index);
        let low = u64::from(registers.u32(offset)) & !u64::from(self.kind.flags());
        let base = match self.kind {
            BarKind::Memory64 { .. } => u64::from(registers.u32(offset + 4)) << 32 | low,
            _ => low,
        };
        self.region
            .place(command.contains(self.kind.enabled_by()).then_some(base));
    }
}
