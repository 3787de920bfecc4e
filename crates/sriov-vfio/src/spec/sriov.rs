//! The SR-IOV extended capability (PCIe §9.3.3).

use std::mem::offset_of;

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Identifier of the extended capability.
pub const ID: u16 = 0x0010;
/// Version of the extended capability.
pub const VERSION: u8 = 1;
/// Length of the extended capability in bytes.
pub const LENGTH: usize = size_of::<Registers>();
/// Most virtual functions that the 16-bit registers can name.
pub const MAX_VFS: u16 = u16::MAX;
/// Number of VF base address registers.
pub const BARS: usize = 6;
/// What the vendor ID and the device ID of a virtual function read: software takes them from the physical function
/// and from [`Registers::vf_device_id`] (PCIe §9.3.4.1.1, §9.3.4.1.2).
pub const VF_ID: u16 = 0xffff;
/// The page size that bit 0 of a page size register stands for, log2 (PCIe §9.3.3.12).
pub const PAGE_SHIFT: u32 = 12;
/// The page sizes that every device must support: 4 KiB, 8 KiB, 64 KiB, 256 KiB, 1 MiB and 4 MiB (PCIe §9.3.3.12).
pub const MANDATORY_PAGE_SIZES: u32 = 0x553;

/// The capability, header included.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
)]
#[repr(C)]
pub struct Registers {
    /// Identifier in bits 15:0, version in bits 19:16, offset of the next capability in bits 31:20 (PCIe §9.3.3.1).
    pub header: U32,
    /// [`Capabilities`]; bits 31:21 hold the migration interrupt's message number (PCIe §9.3.3.2).
    pub capabilities: U32,
    /// [`Control`] (PCIe §9.3.3.3).
    pub control: U16,
    /// Bit 0: a migration is asked for (PCIe §9.3.3.4).
    pub status: U16,
    /// How many virtual functions there are at first (PCIe §9.3.3.5).
    pub initial_vfs: U16,
    /// How many virtual functions there can be (PCIe §9.3.3.6).
    pub total_vfs: U16,
    /// How many virtual functions software wants (PCIe §9.3.3.7).
    pub num_vfs: U16,
    /// Function dependency link, 8 bits (PCIe §9.3.3.8).
    pub dependency_link: U16,
    /// Distance of the first virtual function's requester ID from the physical function's (PCIe §9.3.3.9).
    pub first_vf_offset: U16,
    /// Distance between the requester IDs of two virtual functions (PCIe §9.3.3.10).
    pub vf_stride: U16,
    /// Reserved.
    pub reserved: U16,
    /// Device ID of the virtual functions (PCIe §9.3.3.11).
    pub vf_device_id: U16,
    /// Page sizes to choose from: bit n is 2^(n + 12) bytes (PCIe §9.3.3.12).
    pub supported_page_sizes: U32,
    /// The page size that is used; one bit (PCIe §9.3.3.13).
    pub system_page_size: U32,
    /// Where the first virtual function's BARs are (PCIe §9.3.3.14).
    pub vf_bars: [U32; BARS],
    /// Offset of the migration state array and the BAR that it is in (PCIe §9.3.3.15).
    pub migration_state: U32,
}

/// Offset of [`Registers::capabilities`].
pub const CAPABILITIES: usize = offset_of!(Registers, capabilities);
/// Offset of [`Registers::control`].
pub const CONTROL: usize = offset_of!(Registers, control);
/// Offset of [`Registers::initial_vfs`].
pub const INITIAL_VFS: usize = offset_of!(Registers, initial_vfs);
/// Offset of [`Registers::total_vfs`].
pub const TOTAL_VFS: usize = offset_of!(Registers, total_vfs);
/// Offset of [`Registers::num_vfs`].
pub const NUM_VFS: usize = offset_of!(Registers, num_vfs);
/// Offset of [`Registers::first_vf_offset`].
pub const FIRST_VF_OFFSET: usize = offset_of!(Registers, first_vf_offset);
/// Offset of [`Registers::vf_stride`].
pub const VF_STRIDE: usize = offset_of!(Registers, vf_stride);
/// Offset of [`Registers::vf_device_id`].
pub const VF_DEVICE_ID: usize = offset_of!(Registers, vf_device_id);
/// Offset of [`Registers::supported_page_sizes`].
pub const SUPPORTED_PAGE_SIZES: usize = offset_of!(Registers, supported_page_sizes);
/// Offset of [`Registers::system_page_size`].
pub const SYSTEM_PAGE_SIZE: usize = offset_of!(Registers, system_page_size);
/// Offset of [`Registers::vf_bars`].
pub const VF_BAR0: usize = offset_of!(Registers, vf_bars);

bitflags! {
    /// SR-IOV capabilities (PCIe §9.3.3.2).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Capabilities: u32 {
        /// Virtual functions can be migrated.
        const VF_MIGRATION = 1 << 0;
        /// The lowest-numbered physical function keeps its ARI bit when it is reset.
        const ARI_PRESERVED = 1 << 1;
        /// Virtual functions use 10-bit tags as requesters.
        const VF_10_BIT_TAG = 1 << 2;
    }
}

bitflags! {
    /// SR-IOV control (PCIe §9.3.3.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Control: u16 {
        /// The virtual functions exist.
        const VF_ENABLE = 1 << 0;
        /// Virtual functions may be migrated.
        const MIGRATION_ENABLE = 1 << 1;
        /// A migration interrupts.
        const MIGRATION_INTERRUPT = 1 << 2;
        /// The virtual functions' memory is decoded.
        const MEMORY_ENABLE = 1 << 3;
        /// Virtual functions may be numbered beyond function 7 of the device. Only in the lowest-numbered physical function.
        const ARI_CAPABLE_HIERARCHY = 1 << 4;
        /// Virtual functions may use 10-bit tags.
        const VF_10_BIT_TAG = 1 << 5;
    }
}

/// Extended capabilities begin where conventional configuration space ends (PCIe §7.6.1).
pub const FIRST_EXTENDED: u16 = 0x100;

/// The header of an extended capability (PCIe §7.6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header(pub u32);

impl Header {
    /// The header as it is written.
    pub const fn new(id: u16, version: u8, next: u16) -> Self {
        Self(id as u32 | (version as u32 & 0xf) << 16 | (next as u32 & 0xffc) << 20)
    }

    /// Identifier.
    pub const fn id(self) -> u16 {
        let [low, high, ..] = self.0.to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    /// Version, 0 to 15.
    pub const fn version(self) -> u8 {
        self.0.to_le_bytes()[2] & 0xf
    }

    /// Offset of the next extended capability, a multiple of 4; 0 at the end of the list.
    pub const fn next(self) -> u16 {
        let [low, high, ..] = (self.0 >> 20).to_le_bytes();
        u16::from_le_bytes([low, high]) & 0xffc
    }
}
