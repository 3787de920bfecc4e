//! The differentiated system description table: what an OS cannot find by itself.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name,
    Package, PackageBuilder, ResourceTemplate, Scope,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::{Board, HEADER, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::devices::{cmos, panic, power, serial};
use crate::irq;
use crate::machine::layout::{Layout, PCI_WINDOW_32, VIRTIO_MMIO_SLOT};

/// A virtio-mmio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmioSlot {
    /// Where its registers are.
    pub address: u64,
    /// Its interrupt.
    pub gsi: u32,
}

/// The revision since which AML integers have 64 bits.
const REVISION: u8 = 2;

pub(super) fn build(board: &Board<'_>) -> Sdt {
    let mut aml = Vec::new();
    // SLP_TYP for both control registers, and two reserved values (ACPI 6.5 §7.4.2).
    Name::new(
        "_S5_".into(),
        &Package::new(vec![&power::S5, &0u8, &0u8, &0u8]),
    )
    .to_aml_bytes(&mut aml);
    let mut devices = Vec::new();
    pci(board.layout, &mut devices);
    motherboard(board.layout, &mut devices);
    legacy(&mut devices);
    for (slot, number) in board.virtio_mmio.iter().zip(0u8..) {
        virtio_mmio(*slot, number, &mut devices);
    }
    aml.vec(&Scope::raw("\\_SB_".into(), devices));
    let mut dsdt = Sdt::new(
        *b"DSDT",
        HEADER,
        REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    dsdt.append_slice(&aml);
    dsdt
}

/// The root complex: its windows and the wiring of its interrupt pins.
fn pci(layout: &Layout, aml: &mut Vec<u8>) {
    let window_32 = (
        low_half(PCI_WINDOW_32.start),
        low_half(PCI_WINDOW_32.end - 1),
    );
    let window_64 = layout.pci_window_64();
    let mut routing = PackageBuilder::new();
    for device in 0u8..32 {
        for pin in 0u8..4 {
            // Any function of the device; the source is a GSI (ACPI 6.5 §6.2.13).
            let address = u32::from(device) << 16 | 0xffff;
            let gsi = irq::intx_gsi(device, pin);
            routing.add_element(&Package::new(vec![&address, &pin, &0u8, &gsi]));
        }
    }
    Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &0u8),
            &Name::new("_UID".into(), &0u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &AddressSpace::new_bus_number(0u16, u16::from(layout.last_pci_bus())),
                    &IO::new(0xcf8, 0xcf8, 1, 8),
                    &AddressSpace::new_io(0u16, 0xcf7, None),
                    &AddressSpace::new_io(0xd00u16, 0xffff, None),
                    &AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        window_32.0,
                        window_32.1,
                        None,
                    ),
                    &AddressSpace::new_memory(
                        AddressSpaceCacheable::NotCacheable,
                        true,
                        window_64.start,
                        window_64.end.saturating_sub(1),
                        None,
                    ),
                ]),
            ),
            &Name::new("_PRT".into(), &routing),
        ],
    )
    .to_aml_bytes(aml);
}

/// Says that the configuration window is in use, without which Linux distrusts the MCFG.
fn motherboard(layout: &Layout, aml: &mut Vec<u8>) {
    let ecam = layout.ecam();
    let size = low_half(ecam.end.saturating_sub(ecam.start));
    Device::new(
        "MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &0u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&Memory32Fixed::new(true, low_half(ecam.start), size)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

fn legacy(aml: &mut Vec<u8>) {
    let interrupt = |gsi| Interrupt::new(true, true, false, false, gsi);
    let ports = |base, size| IO::new(base, base, 1, size);
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ports(serial::BASE, 8), &interrupt(serial::IRQ)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
    Device::new(
        "RTC_".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ports(cmos::BASE, 2), &interrupt(cmos::IRQ)]),
            ),
        ],
    )
    .to_aml_bytes(aml);
    Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&ports(panic::PORT, 1)]),
            ),
            &Name::new("_STA".into(), &0xfu8),
        ],
    )
    .to_aml_bytes(aml);
}

/// Linux's name for a virtio-mmio device is LNRO0005 (drivers/virtio/virtio_mmio.c).
fn virtio_mmio(slot: VirtioMmioSlot, number: u8, aml: &mut Vec<u8>) {
    let [tens, ones] = [number / 10, number % 10].map(|digit| char::from(b'0' + digit));
    let name = format!("VM{tens}{ones}");
    Device::new(
        name.as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &number),
            &Name::new("_CCA".into(), &1u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, low_half(slot.address), low_half(VIRTIO_MMIO_SLOT)),
                    &Interrupt::new(true, false, false, false, slot.gsi),
                ]),
            ),
        ],
    )
    .to_aml_bytes(aml);
}

/// Bits 31 to 0 of an address below 4 GiB.
fn low_half(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
