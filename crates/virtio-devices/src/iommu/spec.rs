//! The wire layout of an IOMMU device (Virtio 1.3, §5.13).

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The request queue (§5.13.2).
pub const REQUEST_QUEUE: u16 = 0;
/// The event queue (§5.13.2).
pub const EVENT_QUEUE: u16 = 1;

bitflags! {
    /// Feature bits of the device (§5.13.3).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Features: u64 {
        /// The configuration space tells which addresses can be mapped.
        const INPUT_RANGE = 1 << 0;
        /// The configuration space tells which identifiers a domain can have.
        const DOMAIN_RANGE = 1 << 1;
        /// There are MAP and UNMAP.
        const MAP_UNMAP = 1 << 2;
        /// There is PROBE.
        const PROBE = 1 << 4;
        /// There is [`MapFlags::MMIO`].
        const MMIO = 1 << 5;
        /// The configuration space has [`Config::bypass`] and there is [`AttachFlags::BYPASS`].
        const BYPASS_CONFIG = 1 << 6;
    }
}

/// `struct virtio_iommu_config` (§5.13.4).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes, KnownLayout, Unaligned)]
pub struct Config {
    /// Sizes of pages that are mapped well; the lowest bit is the granularity.
    pub page_size_mask: U64,
    /// First and last address that can be mapped.
    pub input_range: [U64; 2],
    /// First and last identifier of a domain.
    pub domain_range: [U32; 2],
    /// Bytes of properties in a PROBE request.
    pub probe_size: U32,
    /// Endpoints in no domain reach all of memory: 0 or 1. The driver may write it.
    pub bypass: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// Values of [`Head::kind`] (§5.13.6).
pub mod kind {
    /// Puts an endpoint into a domain.
    pub const ATTACH: u8 = 1;
    /// Takes an endpoint out of a domain.
    pub const DETACH: u8 = 2;
    /// Adds a mapping.
    pub const MAP: u8 = 3;
    /// Removes mappings.
    pub const UNMAP: u8 = 4;
    /// Asks for the properties of an endpoint.
    pub const PROBE: u8 = 5;
}

/// `struct virtio_iommu_req_head` (§5.13.6).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
pub struct Head {
    /// One of [`kind`].
    pub kind: u8,
    /// Ignored.
    pub reserved: [u8; 3],
}

/// `struct virtio_iommu_req_tail` (§5.13.6).
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes, KnownLayout, Unaligned)]
pub struct Tail {
    /// A [`Status`].
    pub status: u8,
    /// Zero.
    pub reserved: [u8; 3],
}

/// How a request fared (§5.13.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(u8)]
pub enum Status {
    /// Well.
    Ok = 0,
    /// The device failed.
    DevErr = 3,
    /// Invalid parameters.
    Inval = 4,
    /// Parameters out of range.
    Range = 5,
    /// There is no such domain or endpoint.
    NoEnt = 6,
    /// A bad address.
    Fault = 7,
    /// No room.
    NoMem = 8,
}

bitflags! {
    /// Flags of an ATTACH request (§5.13.6.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AttachFlags: u32 {
        /// The domain translates every address to itself.
        const BYPASS = 1 << 0;
    }

    /// Flags of a MAP request (§5.13.6.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MapFlags: u32 {
        /// Reads are allowed.
        const READ = 1 << 0;
        /// Writes are allowed.
        const WRITE = 1 << 1;
        /// Registers of another device are mapped.
        const MMIO = 1 << 2;
    }
}

/// What follows [`Head`] in an ATTACH request (§5.13.6.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
pub struct Attach {
    /// The domain.
    pub domain: U32,
    /// The endpoint.
    pub endpoint: U32,
    /// [`AttachFlags`].
    pub flags: U32,
    /// Must be zero.
    pub reserved: [u8; 4],
}

/// What follows [`Head`] in a DETACH request (§5.13.6.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
pub struct Detach {
    /// The domain.
    pub domain: U32,
    /// The endpoint.
    pub endpoint: U32,
    /// Ignored.
    pub reserved: [u8; 8],
}

/// What follows [`Head`] in a MAP request (§5.13.6.3).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
pub struct Map {
    /// The domain.
    pub domain: U32,
    /// First address that endpoints use.
    pub virt_start: U64,
    /// Last address that endpoints use.
    pub virt_end: U64,
    /// What the first address translates to.
    pub phys_start: U64,
    /// [`MapFlags`].
    pub flags: U32,
}

/// What follows [`Head`] in an UNMAP request (§5.13.6.4).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
pub struct Unmap {
    /// The domain.
    pub domain: U32,
    /// First address.
    pub virt_start: U64,
    /// Last address.
    pub virt_end: U64,
    /// Must be zero.
    pub reserved: [u8; 4],
}

/// What follows [`Head`] in a PROBE request, before the properties (§5.13.6.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
pub struct Probe {
    /// The endpoint.
    pub endpoint: U32,
    /// Ignored.
    pub reserved: [u8; 64],
}

/// `struct virtio_iommu_probe_resv_mem` (§5.13.6.6.1): addresses that cannot be mapped.
#[repr(C)]
#[derive(Clone, Copy, Debug, Immutable, IntoBytes, KnownLayout, Unaligned)]
pub struct ReservedMemory {
    /// [`ReservedMemory::KIND`].
    pub kind: U16,
    /// Bytes that follow this.
    pub length: U16,
    /// [`ReservedMemory::RESERVED`] or [`ReservedMemory::MSI`].
    pub subtype: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// First address.
    pub start: U64,
    /// Last address.
    pub end: U64,
}

impl ReservedMemory {
    /// The kind of property that this is: RESV_MEM.
    pub const KIND: u16 = 1;
    /// Bytes after the property's header.
    pub const LENGTH: u16 = 20;
    /// Simply reserved.
    pub const RESERVED: u8 = 0;
    /// A doorbell of message-signalled interrupts.
    pub const MSI: u8 = 1;
}

bitflags! {
    /// Flags of a fault (§5.13.6.7).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FaultFlags: u32 {
        /// The access was a read.
        const READ = 1 << 0;
        /// The access was a write.
        const WRITE = 1 << 1;
        /// The address is valid.
        const ADDRESS = 1 << 8;
    }
}

/// `struct virtio_iommu_fault` (§5.13.6.7).
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
pub struct FaultReport {
    /// [`FaultReport::DOMAIN`] or [`FaultReport::MAPPING`].
    pub reason: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// [`FaultFlags`].
    pub flags: U32,
    /// Whose access was blocked.
    pub endpoint: U32,
    /// Zero.
    pub reserved1: U32,
    /// Where.
    pub address: U64,
}

impl FaultReport {
    /// The endpoint is in no domain.
    pub const DOMAIN: u8 = 1;
    /// Nothing is mapped there, or not for this access.
    pub const MAPPING: u8 = 2;
}
