//! Identifiers of extended capabilities (PCI Code and ID Assignment Specification §3).

/// Advanced error reporting.
pub const ERROR_REPORTING: u16 = 0x0001;
/// Device serial number.
pub const SERIAL_NUMBER: u16 = 0x0003;
/// Vendor-specific.
pub const VENDOR: u16 = 0x000b;
/// Address translation services.
pub const ATS: u16 = 0x000f;
/// SR-IOV.
pub const SRIOV: u16 = super::sriov::ID;
/// Resizable BAR.
pub const RESIZABLE_BAR: u16 = 0x0015;
/// Latency tolerance reporting.
pub const LATENCY_TOLERANCE: u16 = 0x0018;
/// Process address space ID.
pub const PASID: u16 = 0x001b;
