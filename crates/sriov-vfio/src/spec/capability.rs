//! Capabilities that are told apart, beside those that [`pio_mmio_bus::pci::spec`] has (PCI Code and ID Assignment Specification §2).

/// Power management.
pub const POWER: u8 = 0x01;
/// Vital product data.
pub const VITAL_PRODUCT_DATA: u8 = 0x03;

/// Length of the power management capability in bytes (PCIe §7.5.2).
pub const POWER_LENGTH: usize = 8;
/// Power management capabilities register (PCIe §7.5.2.1).
pub const POWER_CAPABILITIES: usize = 2;
/// Power management control and status register (PCIe §7.5.2.2).
pub const POWER_CONTROL: usize = 4;
/// [`POWER_CAPABILITIES`]: the states from which the function can signal a power management event.
pub const POWER_EVENTS: u16 = 0xf800;
/// [`POWER_CONTROL`]: the power state.
pub const POWER_STATE: u16 = 0x0003;
/// [`POWER_CONTROL`]: going to D0 resets nothing.
pub const NO_SOFT_RESET: u16 = 0x0008;

/// Length of version 1 of the PCI Express capability in an endpoint, in bytes (PCI Express 1.1 §7.8).
pub const EXPRESS_1_LENGTH: usize = 0x14;

/// Advanced features of conventional PCI.
pub const ADVANCED_FEATURES: u8 = 0x13;
/// Advanced features: what there is of them (PCI, Advanced Capabilities for Conventional PCI, §3).
pub const ADVANCED_CAPABILITIES: usize = 3;
/// [`ADVANCED_CAPABILITIES`]: the function can be reset by itself.
pub const ADVANCED_RESET: u8 = 0x02;
