//! The virtual I/O translation table (ACPI 6.5, VIOT): tells a guest where its paravirtual IOMMUs are and which devices are
//! behind them.

use pio_mmio_bus::pci::RequesterId;

/// Length of the header that every ACPI table has, in bytes: offsets in the table count from its start.
const ACPI_HEADER: usize = 36;

/// Length of what precedes the nodes, in bytes, after the header.
const FIXED: usize = 12;

/// An IOMMU in a table, for what is behind it to refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ViotNode(u16);

/// The nodes of a VIOT table: what follows its ACPI header. The header (signature `VIOT`, revision 0) is whoever's who builds the
/// other tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Viot {
    nodes: Vec<u8>,
    count: u16,
}

/// The table is full: offsets in it have 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the VIOT table takes no more than {0} nodes")]
pub struct ViotFull(pub u16);

impl Viot {
    /// A table without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a virtio-iommu that is a PCI function (node type 3).
    pub fn virtio_pci(
        &mut self,
        segment: u16,
        function: RequesterId,
    ) -> Result<ViotNode, ViotFull> {
        let mut content = segment.to_le_bytes().to_vec();
        content.extend(function.0.to_le_bytes());
        content.extend([0; 8]);
        self.node(3, &content)
    }

    /// Adds a virtio-iommu on virtio-mmio, whose registers are at `base` (node type 4).
    pub fn virtio_mmio(&mut self, base: u64) -> Result<ViotNode, ViotFull> {
        let mut content = vec![0; 4];
        content.extend(base.to_le_bytes());
        self.node(4, &content)
    }

    /// Adds the functions from `first` to `last` of a PCI segment, behind `iommu` (node type 1). Their endpoint IDs are their
    /// requester IDs. The IOMMU itself, if it is among them, is not behind itself.
    pub fn pci_range(
        &mut self,
        segment: u16,
        (first, last): (RequesterId, RequesterId),
        iommu: ViotNode,
    ) -> Result<(), ViotFull> {
        let mut content = u32::from(first.0).to_le_bytes().to_vec();
        for field in [segment, segment, first.0, last.0, iommu.0] {
            content.extend(field.to_le_bytes());
        }
        content.extend([0; 6]);
        self.node(1, &content).map(drop)
    }

    /// Adds a device whose registers are at `base`, behind `iommu` (node type 2).
    pub fn mmio(
        &mut self,
        base: u64,
        endpoint: RequesterId,
        iommu: ViotNode,
    ) -> Result<(), ViotFull> {
        let mut content = u32::from(endpoint.0).to_le_bytes().to_vec();
        content.extend(base.to_le_bytes());
        content.extend(iommu.0.to_le_bytes());
        content.extend([0; 6]);
        self.node(2, &content).map(drop)
    }

    /// The bytes after the ACPI header.
    pub fn body(&self) -> Vec<u8> {
        let mut body = self.count.to_le_bytes().to_vec();
        let first = (ACPI_HEADER + FIXED).to_le_bytes();
        body.extend(first.iter().take(2));
        body.extend([0; 8]);
        body.extend(&self.nodes);
        body
    }

    fn node(&mut self, kind: u8, content: &[u8]) -> Result<ViotNode, ViotFull> {
        let full = ViotFull(self.count);
        let offset = ACPI_HEADER + FIXED + self.nodes.len();
        let offset = u16::try_from(offset).map_err(|_| full)?;
        let length = u16::try_from(4 + content.len()).map_err(|_| full)?;
        self.nodes.extend([kind, 0]);
        self.nodes.extend(length.to_le_bytes());
        self.nodes.extend(content);
        self.count = self.count.checked_add(1).ok_or(full)?;
        Ok(ViotNode(offset))
    }
}
