//! Layouts and constants of the block device (virtio 1.3 §5.2).

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The unit of all sector numbers, in bytes, whatever the block size (§5.2.4).
pub const SECTOR: u64 = 512;

/// Bytes of a device's identity string (§5.2.6).
pub const ID_LEN: usize = 20;

bitflags! {
    /// Feature bits (§5.2.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Features: u64 {
        /// VIRTIO_BLK_F_SEG_MAX: `seg_max` limits the segments of a request.
        const SEG_MAX = 1 << 2;
        /// VIRTIO_BLK_F_RO: the disk is read-only.
        const RO = 1 << 5;
        /// VIRTIO_BLK_F_BLK_SIZE: `blk_size` is the logical block size.
        const BLK_SIZE = 1 << 6;
        /// VIRTIO_BLK_F_FLUSH: writes may be cached until flushed.
        const FLUSH = 1 << 9;
        /// VIRTIO_BLK_F_TOPOLOGY: the topology fields exist.
        const TOPOLOGY = 1 << 10;
        /// VIRTIO_BLK_F_MQ: `num_queues` request queues.
        const MQ = 1 << 12;
        /// VIRTIO_BLK_F_DISCARD.
        const DISCARD = 1 << 13;
        /// VIRTIO_BLK_F_WRITE_ZEROES.
        const WRITE_ZEROES = 1 << 14;
    }
}

/// The configuration space (§5.2.4), as far as this device has it.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Size of the disk, in sectors.
    pub capacity: U64,
    /// Greatest segment, in bytes; 0 as it is not offered.
    pub size_max: U32,
    /// Most segments of a request.
    pub seg_max: U32,
    /// Cylinders, heads and sectors; 0 as they are not offered.
    pub geometry: [u8; 4],
    /// Logical block size, in bytes.
    pub blk_size: U32,
    /// Logical blocks per physical block, as a power of two.
    pub physical_block_exp: u8,
    /// Offset of the first aligned logical block.
    pub alignment_offset: u8,
    /// Smallest efficient transfer, in logical blocks.
    pub min_io_size: U16,
    /// Best transfer, in logical blocks; 0 for none in particular.
    pub opt_io_size: U32,
    /// Whether there is a write-back cache; only a driver that can change it looks here.
    pub writeback: u8,
    /// Padding.
    pub unused0: u8,
    /// Request queues.
    pub num_queues: U16,
    /// Greatest range of a discard, in sectors.
    pub max_discard_sectors: U32,
    /// Most ranges of a discard.
    pub max_discard_seg: U32,
    /// Alignment of discards, in sectors.
    pub discard_sector_alignment: U32,
    /// Greatest range of a write-zeroes, in sectors.
    pub max_write_zeroes_sectors: U32,
    /// Most ranges of a write-zeroes.
    pub max_write_zeroes_seg: U32,
    /// Whether a write-zeroes may deallocate.
    pub write_zeroes_may_unmap: u8,
    /// Padding.
    pub unused1: [u8; 3],
}

/// What begins a request (§5.2.6).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RequestHeader {
    /// One of the `T_` constants.
    pub kind: U32,
    /// Reserved.
    pub reserved: U32,
    /// First sector, of reads and writes.
    pub sector: U64,
}

/// VIRTIO_BLK_T_IN: read.
pub const T_IN: u32 = 0;
/// VIRTIO_BLK_T_OUT: write.
pub const T_OUT: u32 = 1;
/// VIRTIO_BLK_T_FLUSH.
pub const T_FLUSH: u32 = 4;
/// VIRTIO_BLK_T_GET_ID.
pub const T_GET_ID: u32 = 8;
/// VIRTIO_BLK_T_DISCARD.
pub const T_DISCARD: u32 = 11;
/// VIRTIO_BLK_T_WRITE_ZEROES.
pub const T_WRITE_ZEROES: u32 = 13;

/// A range to discard or to zero (§5.2.6).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Range {
    /// First sector.
    pub sector: U64,
    /// Length in sectors.
    pub num_sectors: U32,
    /// [`RangeFlags`].
    pub flags: U32,
}

bitflags! {
    /// Flags of a [`Range`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RangeFlags: u32 {
        /// A write-zeroes may deallocate.
        const UNMAP = 1;
    }
}

/// The last byte of a request's writable part (§5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RequestStatus {
    /// VIRTIO_BLK_S_OK.
    Ok = 0,
    /// VIRTIO_BLK_S_IOERR: the request is wrong, or the medium failed.
    IoErr = 1,
    /// VIRTIO_BLK_S_UNSUPP: no such request, or a flag that is not known.
    Unsupp = 2,
}
