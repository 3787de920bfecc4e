//! Registers and identifiers of PCI configuration space.
//!
//! Section numbers: "PCI" is the PCI Local Bus Specification 3.0, "PCIe" the PCI Express Base Specification 5.0,
//! "Bridge" the PCI-to-PCI Bridge Architecture Specification 1.2.

use bitflags::bitflags;

/// Size of a function's configuration space that ECAM reaches, in bytes (PCIe §7.2.2).
pub const CONFIG_SPACE_SIZE: usize = 4096;
/// Size of the part of it that CF8/CFC reach, in bytes (PCI §6.1).
pub const CONVENTIONAL_SIZE: usize = 256;
/// Where the first capability goes: the end of either header (PCI §6.1).
pub const FIRST_CAPABILITY: usize = 0x40;

/// Vendor ID (PCI §6.2.1).
pub const VENDOR_ID: usize = 0x00;
/// Device ID (PCI §6.2.1).
pub const DEVICE_ID: usize = 0x02;
/// [`Command`] (PCI §6.2.2).
pub const COMMAND: usize = 0x04;
/// [`Status`] (PCI §6.2.3).
pub const STATUS: usize = 0x06;
/// Revision ID; the three bytes of the class code follow (PCI §6.2.1).
pub const REVISION_ID: usize = 0x08;
/// Class code, lowest byte (PCI §6.2.1).
pub const CLASS_CODE: usize = 0x09;
/// Cache line size: read-write, without effect (PCIe §7.5.1.1.7).
pub const CACHE_LINE_SIZE: usize = 0x0c;
/// Header type (PCI §6.2.1).
pub const HEADER_TYPE: usize = 0x0e;
/// The bit of [`HEADER_TYPE`] that announces more functions (PCI §6.2.1).
pub const MULTI_FUNCTION: u8 = 0x80;
/// The first base address register (PCI §6.2.5).
pub const BAR0: usize = 0x10;
/// Subsystem vendor ID of a type 0 header (PCI §6.2.4).
pub const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
/// Subsystem ID of a type 0 header (PCI §6.2.4).
pub const SUBSYSTEM_ID: usize = 0x2e;
/// Pointer to the first capability (PCI §6.7).
pub const CAPABILITIES_POINTER: usize = 0x34;
/// Interrupt line: read-write, for software's use (PCI §6.2.4).
pub const INTERRUPT_LINE: usize = 0x3c;
/// Interrupt pin (PCI §6.2.4).
pub const INTERRUPT_PIN: usize = 0x3d;

/// The registers of a type 1 header (Bridge §3.2.5, PCIe §7.5.1.3).
pub mod bridge {
    use bitflags::bitflags;

    /// Primary bus number.
    pub const PRIMARY_BUS: usize = 0x18;
    /// Secondary bus number.
    pub const SECONDARY_BUS: usize = 0x19;
    /// Subordinate bus number.
    pub const SUBORDINATE_BUS: usize = 0x1a;
    /// I/O base, bits 15:12.
    pub const IO_BASE: usize = 0x1c;
    /// I/O limit, bits 15:12.
    pub const IO_LIMIT: usize = 0x1d;
    /// Secondary status: as the status register.
    pub const SECONDARY_STATUS: usize = 0x1e;
    /// Memory base, bits 31:20.
    pub const MEMORY_BASE: usize = 0x20;
    /// Memory limit, bits 31:20.
    pub const MEMORY_LIMIT: usize = 0x22;
    /// Prefetchable memory base, bits 31:20.
    pub const PREFETCHABLE_BASE: usize = 0x24;
    /// Prefetchable memory limit, bits 31:20.
    pub const PREFETCHABLE_LIMIT: usize = 0x26;
    /// Prefetchable memory base, bits 63:32.
    pub const PREFETCHABLE_BASE_UPPER: usize = 0x28;
    /// Prefetchable memory limit, bits 63:32.
    pub const PREFETCHABLE_LIMIT_UPPER: usize = 0x2c;
    /// I/O base and limit, bits 31:16.
    pub const IO_UPPER: usize = 0x30;
    /// [`Control`].
    pub const CONTROL: usize = 0x3e;
    /// Low nibble of the I/O base and limit: 32-bit addressing.
    pub const IO_32: u8 = 0x1;
    /// Low nibble of the prefetchable base and limit: 64-bit addressing.
    pub const PREFETCHABLE_64: u8 = 0x1;

    bitflags! {
        /// Bridge control register (Bridge §3.2.5.18).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Control: u16 {
            /// Report parity errors of the secondary bus.
            const PARITY = 1 << 0;
            /// Forward SERR#.
            const SERR = 1 << 1;
            /// ISA mode.
            const ISA = 1 << 2;
            /// Forward VGA addresses.
            const VGA = 1 << 3;
            /// Decode VGA addresses in 16 bits.
            const VGA_16 = 1 << 4;
            /// Resets everything behind the bridge.
            const SECONDARY_BUS_RESET = 1 << 6;
        }
    }
}

bitflags! {
    /// Command register (PCI §6.2.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Command: u16 {
        /// Respond to I/O space.
        const IO = 1 << 0;
        /// Respond to memory space.
        const MEMORY = 1 << 1;
        /// May issue requests, message-signalled interrupts included.
        const BUS_MASTER = 1 << 2;
        /// Respond to parity errors.
        const PARITY = 1 << 6;
        /// Report errors.
        const SERR = 1 << 8;
        /// The function must not assert INTx.
        const INTX_DISABLE = 1 << 10;
    }
}

bitflags! {
    /// Status register (PCI §6.2.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Status: u16 {
        /// The function has an INTx interrupt pending.
        const INTERRUPT = 1 << 3;
        /// There is a list of capabilities.
        const CAPABILITIES = 1 << 4;
        /// Master data parity error; write 1 to clear.
        const MASTER_PARITY = 1 << 8;
        /// Signalled target abort; write 1 to clear.
        const SIGNALLED_TARGET_ABORT = 1 << 11;
        /// Received target abort; write 1 to clear.
        const RECEIVED_TARGET_ABORT = 1 << 12;
        /// Received master abort; write 1 to clear.
        const RECEIVED_MASTER_ABORT = 1 << 13;
        /// Signalled system error; write 1 to clear.
        const SIGNALLED_SYSTEM_ERROR = 1 << 14;
        /// Detected parity error; write 1 to clear.
        const PARITY = 1 << 15;
    }
}

impl Status {
    /// The bits that software clears by writing 1.
    pub const CLEARABLE: Self = Self::MASTER_PARITY
        .union(Self::SIGNALLED_TARGET_ABORT)
        .union(Self::RECEIVED_TARGET_ABORT)
        .union(Self::RECEIVED_MASTER_ABORT)
        .union(Self::SIGNALLED_SYSTEM_ERROR)
        .union(Self::PARITY);
}

/// The low bits of a base address register, which say its kind (PCI §6.2.5.1).
pub mod bar {
    /// I/O space.
    pub const IO: u32 = 0x1;
    /// Memory space, 64 bits: the next register holds the upper half.
    pub const MEMORY_64: u32 = 0x4;
    /// Memory space, reads have no side effects.
    pub const PREFETCHABLE: u32 = 0x8;
    /// The bits of an I/O register that are not address.
    pub const IO_FLAGS: u64 = 0x3;
    /// The bits of a memory register that are not address.
    pub const MEMORY_FLAGS: u64 = 0xf;
}

/// Identifiers of capabilities (PCI Code and ID Assignment Specification §2).
pub mod capability_id {
    /// Message-signalled interrupts.
    pub const MSI: u8 = 0x05;
    /// Vendor-specific.
    pub const VENDOR: u8 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
}

/// Identifiers of extended capabilities (PCI Code and ID Assignment Specification §3).
pub mod extended_capability_id {
    /// Access control services.
    pub const ACS: u16 = 0x000d;
    /// Alternative routing-ID interpretation.
    pub const ARI: u16 = 0x000e;
}

/// The MSI capability with 64-bit address and per-vector masks (PCIe §7.7.1).
pub mod msi {
    use bitflags::bitflags;

    /// Length of the capability in bytes.
    pub const LENGTH: usize = 0x18;
    /// [`Control`].
    pub const CONTROL: usize = 0x02;
    /// Message address, lower half.
    pub const ADDRESS: usize = 0x04;
    /// Message address, upper half.
    pub const ADDRESS_UPPER: usize = 0x08;
    /// Message data, 16 bits.
    pub const DATA: usize = 0x0c;
    /// One mask bit a vector.
    pub const MASK: usize = 0x10;
    /// One pending bit a vector.
    pub const PENDING: usize = 0x14;
    /// Most vectors of a function.
    pub const MAX_VECTORS: u8 = 32;

    bitflags! {
        /// Message control register (PCIe §7.7.1.2).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Control: u16 {
            /// The function may signal messages.
            const ENABLE = 1 << 0;
            /// Log2 of the number of vectors that the function asks for.
            const CAPABLE = 0x7 << 1;
            /// Log2 of the number of vectors that software granted.
            const ENABLED = 0x7 << 4;
            /// The address has 64 bits.
            const ADDRESS_64 = 1 << 7;
            /// There are mask and pending bits.
            const PER_VECTOR_MASKING = 1 << 8;
        }
    }

    impl Control {
        /// Log2 of the number of vectors that software granted.
        pub const fn enabled_log2(self) -> u16 {
            (self.bits() & Self::ENABLED.bits()) >> 4
        }

        /// The register of a function that asks for 2^`log2` vectors.
        pub const fn capable(log2: u16) -> Self {
            Self::from_bits_retain((log2 << 1) & Self::CAPABLE.bits())
        }
    }
}

/// The MSI-X capability, its table and its pending bit array (PCIe §7.7.2).
pub mod msix {
    use bitflags::bitflags;

    /// Length of the capability in bytes.
    pub const LENGTH: usize = 0x0c;
    /// [`Control`].
    pub const CONTROL: usize = 0x02;
    /// Offset of the table in its BAR; the low three bits name the BAR.
    pub const TABLE: usize = 0x04;
    /// Offset of the pending bit array in its BAR; the low three bits name the BAR.
    pub const PBA: usize = 0x08;
    /// Most vectors of a function.
    pub const MAX_VECTORS: u16 = 2048;
    /// Size of a table entry in bytes.
    pub const ENTRY_SIZE: u64 = 16;
    /// The mask bit of an entry's vector control word.
    pub const ENTRY_MASKED: u32 = 1;

    bitflags! {
        /// Message control register (PCIe §7.7.2.2); the low 11 bits hold the table size minus one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Control: u16 {
            /// All vectors are masked.
            const FUNCTION_MASK = 1 << 14;
            /// The function uses MSI-X and must not use INTx.
            const ENABLE = 1 << 15;
        }
    }
}

/// The PCI Express capability, version 2 (PCIe §7.5.3).
pub mod express {
    use bitflags::bitflags;

    /// Length of the capability in bytes.
    pub const LENGTH: usize = 0x3c;
    /// Capabilities register: version, port type.
    pub const CAPABILITIES: usize = 0x02;
    /// Device capabilities.
    pub const DEVICE_CAPABILITIES: usize = 0x04;
    /// [`DeviceControl`].
    pub const DEVICE_CONTROL: usize = 0x08;
    /// Device status: four error bits, write 1 to clear.
    pub const DEVICE_STATUS: usize = 0x0a;
    /// Link capabilities.
    pub const LINK_CAPABILITIES: usize = 0x0c;
    /// Link control.
    pub const LINK_CONTROL: usize = 0x10;
    /// Link status.
    pub const LINK_STATUS: usize = 0x12;
    /// Root control.
    pub const ROOT_CONTROL: usize = 0x1c;
    /// Root status.
    pub const ROOT_STATUS: usize = 0x20;
    /// Device capabilities 2.
    pub const DEVICE_CAPABILITIES_2: usize = 0x24;
    /// Device control 2.
    pub const DEVICE_CONTROL_2: usize = 0x28;
    /// Link capabilities 2.
    pub const LINK_CAPABILITIES_2: usize = 0x2c;
    /// Link control 2.
    pub const LINK_CONTROL_2: usize = 0x30;

    /// Version of the capability structure.
    pub const VERSION: u16 = 2;
    /// Device capabilities: role-based error reporting, which version 2 requires.
    pub const ROLE_BASED_ERRORS: u32 = 1 << 15;
    /// Device capabilities: function-level reset.
    pub const FUNCTION_LEVEL_RESET: u32 = 1 << 28;
    /// Link capabilities: 2.5 GT/s, one lane.
    pub const LINK_GEN1_X1: u32 = 0x11;
    /// Link capabilities: data link layer link active reporting.
    pub const LINK_ACTIVE_REPORTING: u32 = 1 << 20;
    /// Link status: 2.5 GT/s, one lane.
    pub const LINK_STATUS_GEN1_X1: u16 = 0x11;
    /// Link status: data link layer link active.
    pub const LINK_ACTIVE: u16 = 1 << 13;
    /// Link capabilities 2: supports 2.5 GT/s.
    pub const LINK_SPEEDS_GEN1: u32 = 1 << 1;
    /// Link control bits that software may set: link disable and retrain stay 0.
    pub const LINK_CONTROL_WRITABLE: u16 = 0x00cb;
    /// Link control 2: target link speed.
    pub const TARGET_LINK_SPEED: u16 = 0x000f;
    /// Root control bits that software may set.
    pub const ROOT_CONTROL_WRITABLE: u16 = 0x001f;
    /// Root status: PME status, write 1 to clear.
    pub const ROOT_STATUS_PME: u32 = 1 << 16;
    /// Device status bits that software clears by writing 1.
    pub const DEVICE_STATUS_CLEARABLE: u16 = 0x000f;
    /// Device capabilities 2 and device control 2 share this bit: ARI forwarding supported, enabled.
    pub const ARI_FORWARDING: u16 = 1 << 5;

    bitflags! {
        /// Device control register (PCIe §7.5.3.4).
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct DeviceControl: u16 {
            /// The four error reporting enables.
            const ERROR_REPORTING = 0xf;
            /// Relaxed ordering.
            const RELAXED_ORDERING = 1 << 4;
            /// Largest payload: 128 bytes shifted by this.
            const MAX_PAYLOAD = 0x7 << 5;
            /// No snoop.
            const NO_SNOOP = 1 << 11;
            /// Largest read request: 128 bytes shifted by this.
            const MAX_READ_REQUEST = 0x7 << 12;
            /// Starts a function-level reset; reads 0.
            const INITIATE_RESET = 1 << 15;
        }
    }

    impl DeviceControl {
        /// The value after reset: relaxed ordering, no snoop, read requests of 512 bytes.
        pub const RESET: Self =
            Self::from_bits_retain(Self::RELAXED_ORDERING.bits() | Self::NO_SNOOP.bits() | 2 << 12);
    }
}

/// Access control services (PCIe §7.7.8).
pub mod acs {
    use bitflags::bitflags;

    /// Length of the extended capability without an egress control vector, in bytes.
    pub const LENGTH: usize = 8;
    /// Version of the extended capability.
    pub const VERSION: u8 = 1;
    /// The capability register.
    pub const CAPABILITY: usize = 4;
    /// The control register.
    pub const CONTROL: usize = 6;

    bitflags! {
        /// What the port isolates; the same bits enable it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct Services: u16 {
            /// Source validation.
            const SOURCE_VALIDATION = 1 << 0;
            /// Translation blocking.
            const TRANSLATION_BLOCKING = 1 << 1;
            /// Peer-to-peer request redirect.
            const REQUEST_REDIRECT = 1 << 2;
            /// Peer-to-peer completion redirect.
            const COMPLETION_REDIRECT = 1 << 3;
            /// Upstream forwarding.
            const UPSTREAM_FORWARDING = 1 << 4;
            /// Direct translated peer-to-peer.
            const DIRECT_TRANSLATED = 1 << 6;
        }
    }
}

/// Alternative routing-ID interpretation (PCIe §7.8.7).
pub mod ari {
    /// Length of the extended capability in bytes.
    pub const LENGTH: usize = 8;
    /// Version of the extended capability.
    pub const VERSION: u8 = 1;
    /// Next function number.
    pub const NEXT_FUNCTION: usize = 5;
}

/// The configuration mechanism of ports 0xCF8 and 0xCFC (PCI §3.2.2.3.2).
pub mod ports {
    /// First port.
    pub const BASE: u64 = 0xcf8;
    /// Number of ports.
    pub const SIZE: u64 = 8;
    /// Offset of the data register.
    pub const DATA: u64 = 4;
    /// Enables the translation of data accesses to configuration accesses.
    pub const ENABLE: u32 = 1 << 31;
    /// The bits of the address register that hold what is written.
    pub const WRITABLE: u32 = 0x80ff_fffc;
}
