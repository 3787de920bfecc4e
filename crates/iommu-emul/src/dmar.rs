//! The DMA remapping reporting table (VT-d §8): tells a guest where the units are and which devices are behind them.

use pio_mmio_bus::pci::RequesterId;

use crate::vtd::Capabilities;

/// A device that a unit serves, or that a reserved range is for (§8.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceScope {
    /// A PCI function on bus 0, or on another root bus.
    Endpoint(RequesterId),
    /// A bridge and everything below it.
    Bridge(RequesterId),
    /// An I/O APIC.
    IoApic {
        /// Its identifier, as in the MADT.
        id: u8,
        /// What its interrupts come from.
        requester: RequesterId,
    },
    /// A timer whose interrupts are messages.
    Hpet {
        /// Its number, as in the HPET table.
        id: u8,
        /// What its interrupts come from.
        requester: RequesterId,
    },
}

/// A unit (§8.3, DRHD).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drhd<'a> {
    /// Base of the unit's registers.
    pub base: u64,
    /// Size of the register window in bytes: [`Capabilities::register_bytes`].
    pub register_bytes: u64,
    /// PCI segment.
    pub segment: u16,
    /// The unit serves every function of the segment that no other unit does. Its `scopes` are then I/O APICs and timers only.
    pub include_all: bool,
    /// What it serves.
    pub scopes: &'a [DeviceScope],
}

/// Memory that devices use without their driver's knowledge, and that must be mapped for them one to one (§8.4, RMRR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rmrr<'a> {
    /// PCI segment.
    pub segment: u16,
    /// First address, aligned to 4 KiB.
    pub base: u64,
    /// Last address, the last of a page of 4 KiB.
    pub limit: u64,
    /// Who uses it.
    pub scopes: &'a [DeviceScope],
}

/// Root ports whose devices may have device-TLBs (§8.5, ATSR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Atsr<'a> {
    /// PCI segment.
    pub segment: u16,
    /// All root ports of the segment; `ports` is then empty.
    pub all_ports: bool,
    /// The root ports.
    pub ports: &'a [DeviceScope],
}

/// The remapping structures of a DMAR table: what follows its ACPI header. The header (signature `DMAR`, revision 1) is whoever's
/// who builds the other tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dmar {
    body: Vec<u8>,
}

/// Why a DMAR table could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DmarError {
    /// A structure does not fit its 16-bit length.
    #[error("{0} device scopes do not fit a structure")]
    TooManyScopes(usize),
    /// A reserved range is not whole pages.
    #[error("reserved range {base:#x} to {limit:#x} is not whole pages")]
    Reserved {
        /// First address.
        base: u64,
        /// Last address.
        limit: u64,
    },
}

impl Dmar {
    /// A table for units with `capabilities`. `x2apic_opt_out` asks the guest to keep to xAPIC mode.
    pub fn new(capabilities: &Capabilities, x2apic_opt_out: bool) -> Self {
        let config = capabilities.config();
        let flags = u8::from(config.interrupt_remapping) | u8::from(x2apic_opt_out) << 1;
        // Host address width minus 1, flags, 10 reserved bytes (§8.1).
        let mut body = vec![config.host_address_width - 1, flags];
        body.extend([0; 10]);
        Self { body }
    }

    /// Adds a unit. One with `include_all` must be the last of its segment.
    pub fn drhd(&mut self, drhd: &Drhd<'_>) -> Result<&mut Self, DmarError> {
        // The size is log2 of the number of 4 KiB pages, in 4 bits.
        let size = drhd.register_bytes.max(4096).ilog2() - 12;
        let [size, ..] = size.to_le_bytes();
        let mut content = vec![u8::from(drhd.include_all), size & 0xf];
        content.extend(drhd.segment.to_le_bytes());
        content.extend(drhd.base.to_le_bytes());
        self.structure(0, &content, drhd.scopes)
    }

    /// Adds a reserved range.
    pub fn rmrr(&mut self, rmrr: &Rmrr<'_>) -> Result<&mut Self, DmarError> {
        let Rmrr { base, limit, .. } = *rmrr;
        if base & 0xfff != 0 || limit & 0xfff != 0xfff || limit < base {
            return Err(DmarError::Reserved { base, limit });
        }
        let mut content = vec![0; 2];
        content.extend(rmrr.segment.to_le_bytes());
        content.extend(base.to_le_bytes());
        content.extend(limit.to_le_bytes());
        self.structure(1, &content, rmrr.scopes)
    }

    /// Adds root ports.
    pub fn atsr(&mut self, atsr: &Atsr<'_>) -> Result<&mut Self, DmarError> {
        let mut content = vec![u8::from(atsr.all_ports), 0];
        content.extend(atsr.segment.to_le_bytes());
        self.structure(2, &content, atsr.ports)
    }

    /// The bytes after the ACPI header.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    fn structure(
        &mut self,
        kind: u16,
        content: &[u8],
        scopes: &[DeviceScope],
    ) -> Result<&mut Self, DmarError> {
        const SCOPE: usize = 8;
        let length = u16::try_from(4 + content.len() + SCOPE * scopes.len())
            .map_err(|_| DmarError::TooManyScopes(scopes.len()))?;
        self.body.extend(kind.to_le_bytes());
        self.body.extend(length.to_le_bytes());
        self.body.extend(content);
        for scope in scopes {
            let (kind, id, requester) = match *scope {
                DeviceScope::Endpoint(requester) => (1, 0, requester),
                DeviceScope::Bridge(requester) => (2, 0, requester),
                DeviceScope::IoApic { id, requester } => (3, id, requester),
                DeviceScope::Hpet { id, requester } => (4, id, requester),
            };
            // Length, 2 reserved bytes, identifier, root bus, and a path of one device.
            self.body.extend([kind, 8, 0, 0, id, requester.bus()]);
            self.body.extend([requester.device(), requester.function()]);
        }
        Ok(self)
    }
}
