//! The VIOT table, byte by byte.

use iommu_emul::viot::{Viot, ViotFull};
use pio_mmio_bus::pci::RequesterId;

#[test]
fn nodes_are_laid_out_as_acpi_has_them() {
    let mut table = Viot::new();
    let pci = table.virtio_pci(0, RequesterId(0x10)).unwrap();
    table
        .pci_range(0, (RequesterId(0), RequesterId(0xffff)), pci)
        .unwrap();
    let mmio = table.virtio_mmio(0xd000_1000).unwrap();
    table.mmio(0xd000_2000, RequesterId(0x1234), mmio).unwrap();
    #[rustfmt::skip]
    let expected = [
        // Number of nodes, offset of the first from the start of the table, reserved.
        4, 0, 48, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        // At 48: virtio-iommu on PCI: segment, function.
        3, 0, 16, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        // PCI range: first endpoint, segments, functions, node of the IOMMU.
        1, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 48, 0, 0, 0, 0, 0, 0, 0,
        // At 88: virtio-iommu on virtio-mmio.
        4, 0, 16, 0, 0, 0, 0, 0, 0, 0x10, 0, 0xd0, 0, 0, 0, 0,
        // A device: endpoint, base, node of the IOMMU.
        2, 0, 24, 0, 0x34, 0x12, 0, 0, 0, 0x20, 0, 0xd0, 0, 0, 0, 0, 88, 0, 0, 0, 0, 0, 0, 0,
    ];
    assert_eq!(table.body(), expected);
}

#[test]
fn a_table_is_full_before_its_offsets_overflow() {
    let mut table = Viot::new();
    let iommu = table.virtio_mmio(0).unwrap();
    let all = (RequesterId(0), RequesterId(0));
    let nodes = (0..).find(|_| table.pci_range(0, all, iommu).is_err());
    let body = table.body();
    assert_eq!(
        table.pci_range(0, all, iommu),
        Err(ViotFull(nodes.unwrap() + 1))
    );
    assert_eq!(table.body(), body);
    assert_eq!(body.len(), 12 + 16 + 24 * usize::from(nodes.unwrap()));
}
