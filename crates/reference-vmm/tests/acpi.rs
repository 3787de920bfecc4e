//! The ACPI tables as an operating system finds them: from the RSDP on, by address and length, with right checksums.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "test code"
)]

use iommu_emul::dmar::{DeviceScope, Dmar, Drhd};
use reference_vmm::acpi::{Board, IommuTable, Tables, VirtioMmioSlot, build};
use reference_vmm::irq::IOAPIC_REQUESTER;
use reference_vmm::machine::layout::{ACPI_TABLES, GIB, IOAPIC_ID, Layout, VTD};

fn tables(cpus: u8, slots: &[VirtioMmioSlot]) -> Tables {
    let layout = Layout::new(GIB, 40).unwrap();
    let board = Board {
        layout: &layout,
        cpus,
        virtio_mmio: slots,
        iommu: None,
    };
    build(&board).unwrap()
}

fn at(tables: &Tables, address: u64) -> &[u8] {
    &tables.bytes[usize::try_from(address - tables.address).unwrap()..]
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// A table with a right length and checksum (ACPI 6.5 §5.2.6).
fn table<'a>(tables: &'a Tables, address: u64, signature: &str) -> &'a [u8] {
    let bytes = at(tables, address);
    let bytes = &bytes[..usize::try_from(u32_at(bytes, 4)).unwrap()];
    assert_eq!(&bytes[..4], signature.as_bytes());
    assert_eq!(sum(bytes), 0, "{signature}");
    bytes
}

/// The tables that the XSDT lists.
fn find<'a>(tables: &'a Tables, signature: &str) -> &'a [u8] {
    let rsdp = at(tables, tables.rsdp);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!(sum(&rsdp[..20]), 0);
    assert_eq!(sum(&rsdp[..36]), 0);
    let xsdt = table(tables, u64_at(rsdp, 24), "XSDT");
    for entry in xsdt[36..].chunks_exact(8) {
        let address = u64_at(entry, 0);
        if at(tables, address).starts_with(signature.as_bytes()) {
            return table(tables, address, signature);
        }
    }
    panic!("no {signature}");
}

#[test]
fn every_table_is_reachable_and_sound() {
    let tables = tables(2, &[]);
    assert!(ACPI_TABLES.contains(&tables.rsdp) && tables.rsdp.is_multiple_of(16));
    let fadt = find(&tables, "FACP");
    let dsdt = table(&tables, u64_at(fadt, 140), "DSDT");
    assert!(dsdt.windows(4).any(|name| name == b"_S5_"));
    // HW_REDUCED_ACPI and RESET_REG_SUP.
    let flags = u32_at(fadt, 112);
    assert_eq!(flags >> 20 & 1, 1);
    assert_eq!(flags >> 10 & 1, 1);
    let mcfg = find(&tables, "MCFG");
    assert_eq!((u64_at(mcfg, 44), mcfg[55]), (0xe000_0000, 0));
}

#[test]
fn as_many_buses_are_announced_as_have_configuration_space() {
    let layout = Layout::new(GIB, 40).unwrap().with_last_pci_bus(3);
    assert_eq!(layout.ecam(), 0xe000_0000..0xe040_0000);
    let board = Board {
        layout: &layout,
        cpus: 1,
        virtio_mmio: &[],
        iommu: None,
    };
    let tables = build(&board).unwrap();
    let mcfg = find(&tables, "MCFG");
    assert_eq!((u64_at(mcfg, 44), mcfg[55]), (0xe000_0000, 3));
}

/// VT-d §8.1, §8.3: one unit before everything, and the I/O APIC under the number that the MADT gives it.
#[test]
fn dmar_names_the_unit_and_the_io_apic() {
    let capabilities = iommu_emul::vtd::Config::default().capabilities().unwrap();
    let mut dmar = Dmar::new(&capabilities, false);
    dmar.drhd(&Drhd {
        base: VTD,
        register_bytes: capabilities.register_bytes(),
        segment: 0,
        include_all: true,
        scopes: &[DeviceScope::IoApic {
            id: IOAPIC_ID,
            requester: IOAPIC_REQUESTER,
        }],
    })
    .unwrap();
    let layout = Layout::new(GIB, 40).unwrap();
    let board = Board {
        layout: &layout,
        cpus: 1,
        virtio_mmio: &[],
        iommu: Some(&IommuTable::Dmar(dmar)),
    };
    let tables = build(&board).unwrap();
    let bytes = find(&tables, "DMAR");
    assert_eq!(
        bytes[37], 1,
        "interrupt remapping, and x2APIC if the guest likes"
    );
    assert_eq!((bytes[48], bytes[52], u64_at(bytes, 56)), (0, 1, VTD));
    let (scope, madt) = (&bytes[64..], find(&tables, "APIC"));
    let io_apic = madt.len() - 12;
    assert_eq!((madt[io_apic], scope[0]), (1, 3));
    assert_eq!(madt[io_apic + 2], scope[4]);
}

#[test]
fn madt_lists_the_processors() {
    for cpus in [1, 2, 254] {
        let tables = tables(cpus, &[]);
        let madt = find(&tables, "APIC");
        let mut rest = &madt[44..];
        let mut ids = Vec::new();
        let mut io_apics = 0;
        while !rest.is_empty() {
            match rest[0] {
                0 => {
                    assert_eq!(u32_at(rest, 4) & 1, 1, "enabled");
                    ids.push(rest[3]);
                }
                1 => io_apics += 1,
                other => panic!("structure of type {other}"),
            }
            rest = &rest[usize::from(rest[1])..];
        }
        assert_eq!(ids, (0..cpus).collect::<Vec<_>>());
        assert_eq!(io_apics, 1);
    }
}

#[test]
fn virtio_mmio_devices_are_named() {
    let slots: Vec<VirtioMmioSlot> = (0..12)
        .map(|n| VirtioMmioSlot {
            address: 0xf000_0000 + u64::from(n) * 0x1000,
            gsi: n,
        })
        .collect();
    let with = tables(1, &slots);
    let fadt = find(&with, "FACP");
    let dsdt = table(&with, u64_at(fadt, 140), "DSDT");
    let count = |text: &[u8]| dsdt.windows(text.len()).filter(|w| *w == text).count();
    assert_eq!(count(b"LNRO0005"), slots.len());
    assert_eq!(count(b"VM11"), 1);
}
