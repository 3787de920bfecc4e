//! Where everything is in the guest's physical address space.

use std::ops::Range;

use vm_memory::GuestAddress;

/// One mebibyte, in bytes.
pub const MIB: u64 = 1 << 20;
/// One gibibyte, in bytes.
pub const GIB: u64 = 1 << 30;

/// End of conventional memory; from here to 1 MiB a PC has no usable RAM.
pub const CONVENTIONAL_END: u64 = 0xa_0000;
/// Where the ACPI tables are, in the range that an OS searches for the RSDP (ACPI 6.5 §5.2.5.1).
pub const ACPI_TABLES: Range<u64> = 0xe_0000..0xf_f000;
/// Where a PC has its firmware.
pub const FIRMWARE: Range<u64> = 0xf_f000..0x10_0000;
/// Where the firmware is entered in real mode, at FFFF:0000.
pub const FIRMWARE_ENTRY: u64 = 0xf_fff0;
/// Start of extended memory, where kernels are loaded.
pub const HIGH_RAM: u64 = MIB;
/// First address of the hole below 4 GiB: RAM beyond it continues at [`ABOVE_4G`].
pub const LOW_RAM_LIMIT: u64 = 3 * GIB;
/// Window for the 32-bit memory BARs of PCI functions.
pub const PCI_WINDOW_32: Range<u64> = 0xc000_0000..0xe000_0000;
/// Where enhanced configuration access starts: 1 MiB for each bus (PCI Express Base Specification §7.2.2).
const ECAM: u64 = 0xe000_0000;
/// Slots of virtio-mmio devices.
pub const VIRTIO_MMIO: Range<u64> = 0xf000_0000..0xf010_0000;
/// Size of one virtio-mmio slot.
pub const VIRTIO_MMIO_SLOT: u64 = 0x1000;
/// The I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Identifier of the I/O APIC, by which ACPI tables name it.
pub const IOAPIC_ID: u8 = 0;
/// Registers of the VT-d unit, where Intel's chipsets have them.
pub const VTD: u64 = 0xfed9_0000;
/// The page by which a guest that sees Xen talks to its store, where Xen has pages of that kind.
pub const XEN_STORE: u64 = 0xfeff_c000;
/// The local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// A page that KVM on Intel needs for real mode without unrestricted guests.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages that KVM on Intel needs for the same reason.
pub const KVM_TSS: usize = 0xfffb_d000;
/// Where RAM continues above the hole.
pub const ABOVE_4G: u64 = 4 * GIB;

/// Size of the window for 64-bit memory BARs.
const PCI_WINDOW_64_SIZE: u64 = 16 * GIB;

/// Why a memory size cannot be laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Less than a kernel needs to say why it failed.
    #[error("{0} bytes of memory are too few, the least is 16 MiB")]
    TooSmall(u64),
    /// Not a whole number of pages.
    #[error("{0} bytes of memory are not a multiple of 4096")]
    Unaligned(u64),
    /// RAM and the PCI window do not fit in the physical addresses of the processor.
    #[error("{ram} bytes of memory do not fit in {address_bits} bits of physical address")]
    TooLarge {
        /// The size asked for, in bytes.
        ram: u64,
        /// Width of a physical address.
        address_bits: u8,
    },
}

/// What a range of the memory map is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    /// RAM that the guest may use.
    Ram,
    /// The guest must leave it alone.
    Reserved,
    /// RAM that holds ACPI tables; usable once the guest has read them.
    AcpiTables,
}

impl RangeKind {
    /// The type in an e820 or PVH memory map (ACPI 6.5 §15, table 15.4).
    pub const fn e820_type(self) -> u32 {
        match self {
            Self::Ram => 1,
            Self::Reserved => 2,
            Self::AcpiTables => 3,
        }
    }
}

/// One entry of the memory map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// First byte and the byte after the last.
    pub range: Range<u64>,
    /// What it is for.
    pub kind: RangeKind,
}

/// The address map of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    ram: u64,
    last_pci_bus: u8,
    pci_window_64: Range<u64>,
}

impl Layout {
    /// Lays out `ram` bytes of memory and one PCI bus on a processor with `address_bits` bits of physical address.
    pub fn new(ram: u64, address_bits: u8) -> Result<Self, LayoutError> {
        if ram < 16 * MIB {
            return Err(LayoutError::TooSmall(ram));
        }
        if !ram.is_multiple_of(4096) {
            return Err(LayoutError::Unaligned(ram));
        }
        let too_large = LayoutError::TooLarge { ram, address_bits };
        let above = ram.saturating_sub(LOW_RAM_LIMIT);
        let start = ABOVE_4G
            .checked_add(above)
            .and_then(|end| end.checked_next_multiple_of(GIB))
            .ok_or(too_large)?;
        let end = start.checked_add(PCI_WINDOW_64_SIZE).ok_or(too_large)?;
        let limit = 1u64.checked_shl(address_bits.into()).unwrap_or(u64::MAX);
        if end > limit {
            return Err(too_large);
        }
        Ok(Self {
            ram,
            last_pci_bus: 0,
            pci_window_64: start..end,
        })
    }

    /// Has PCI buses up to number `last`, at most 254. Linux probes every device of every bus that the firmware announces, with two
    /// exits each, so there should be no more than are needed.
    pub fn with_last_pci_bus(self, last: u8) -> Self {
        Self {
            last_pci_bus: last.min(254),
            ..self
        }
    }

    /// Number of the last PCI bus.
    pub fn last_pci_bus(&self) -> u8 {
        self.last_pci_bus
    }

    /// Enhanced configuration access.
    pub fn ecam(&self) -> Range<u64> {
        ECAM..ECAM + (u64::from(self.last_pci_bus) + 1) * MIB
    }

    /// Window for the 64-bit memory BARs of PCI functions.
    pub fn pci_window_64(&self) -> Range<u64> {
        self.pci_window_64.clone()
    }

    /// End of the RAM below the hole.
    pub fn low_ram_end(&self) -> u64 {
        self.ram.min(LOW_RAM_LIMIT)
    }

    /// RAM as it is mapped: one range, or two when there is more than fits below the hole.
    pub fn ram(&self) -> Vec<(GuestAddress, u64)> {
        let low = self.low_ram_end();
        let mut ranges = vec![(GuestAddress(0), low)];
        if self.ram > low {
            ranges.push((GuestAddress(ABOVE_4G), self.ram.saturating_sub(low)));
        }
        ranges
    }

    /// The memory map as the guest is told: ascending, without overlaps.
    pub fn map(&self) -> Vec<MapEntry> {
        let entry = |range, kind| MapEntry { range, kind };
        let mut map = vec![
            entry(0..CONVENTIONAL_END, RangeKind::Ram),
            entry(ACPI_TABLES, RangeKind::AcpiTables),
            entry(FIRMWARE, RangeKind::Reserved),
            entry(HIGH_RAM..self.low_ram_end(), RangeKind::Ram),
            entry(self.ecam(), RangeKind::Reserved),
        ];
        if self.ram > LOW_RAM_LIMIT {
            let end = ABOVE_4G.saturating_add(self.ram.saturating_sub(LOW_RAM_LIMIT));
            map.push(entry(ABOVE_4G..end, RangeKind::Ram));
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_what_cannot_be_laid_out() {
        assert_eq!(Layout::new(0, 40), Err(LayoutError::TooSmall(0)));
        let odd = 64 * MIB + 1;
        assert_eq!(Layout::new(odd, 40), Err(LayoutError::Unaligned(odd)));
        let ram = 64 * GIB;
        let address_bits = 36;
        assert_eq!(
            Layout::new(ram, address_bits),
            Err(LayoutError::TooLarge { ram, address_bits })
        );
        assert!(Layout::new(!0xfff, 64).is_err());
    }

    proptest! {
        #[test]
        fn map_is_sorted_disjoint_and_holds_all_ram(pages in 4096u64..(1 << 28), bits in 36u8..=52, bus: u8) {
            let ram = pages * 4096;
            let Ok(layout) = Layout::new(ram, bits).map(|layout| layout.with_last_pci_bus(bus)) else {
                prop_assert!(ram + 17 * GIB > 1 << bits);
                return Ok(());
            };
            let map = layout.map();
            for pair in map.windows(2) {
                prop_assert!(pair[0].range.end <= pair[1].range.start);
            }
            prop_assert!(map.iter().all(|entry| entry.range.start < entry.range.end));
            let mapped: u64 = layout.ram().iter().map(|(_, size)| size).sum();
            prop_assert_eq!(mapped, ram);
            // Usable RAM is all of it but the legacy hole between 640 KiB and 1 MiB.
            let usable: u64 = map
                .iter()
                .filter(|entry| entry.kind == RangeKind::Ram)
                .map(|entry| entry.range.end - entry.range.start)
                .sum();
            prop_assert_eq!(usable, ram - (HIGH_RAM - CONVENTIONAL_END));
            // RAM never reaches into a window of devices.
            for (start, size) in layout.ram() {
                for window in [PCI_WINDOW_32, layout.ecam(), VIRTIO_MMIO, layout.pci_window_64()] {
                    prop_assert!(start.0 + size <= window.start || window.end <= start.0);
                }
            }
            prop_assert!(layout.pci_window_64().end <= 1 << bits);
        }
    }
}
