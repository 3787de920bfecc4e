//! Wire layouts and constants of virtqueues (virtio 1.3 §2.7, §2.8, §6).

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Largest queue size (§2.7, §2.8).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// Most bytes that one chain may describe (§2.7.4, §2.8.8): 2³².
pub const MAX_CHAIN_BYTES: u64 = 1 << 32;

bitflags! {
    /// The feature bits that concern virtqueues (§6). Bits of device types are not kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub struct Features: u64 {
        /// `VIRTIO_F_INDIRECT_DESC`: a descriptor may point to a table of descriptors.
        const INDIRECT_DESC = 1 << 28;
        /// `VIRTIO_F_EVENT_IDX`: each side says at which index it wants to be notified.
        const EVENT_IDX = 1 << 29;
        /// `VIRTIO_F_VERSION_1`: the device is not a legacy one.
        const VERSION_1 = 1 << 32;
        /// `VIRTIO_F_ACCESS_PLATFORM`: addresses go through the platform's IOMMU.
        const ACCESS_PLATFORM = 1 << 33;
        /// `VIRTIO_F_RING_PACKED`: packed rings.
        const RING_PACKED = 1 << 34;
        /// `VIRTIO_F_IN_ORDER`: buffers are used in the order in which they were made available.
        const IN_ORDER = 1 << 35;
        /// `VIRTIO_F_ORDER_PLATFORM`: memory accesses are ordered as the platform orders those of devices.
        const ORDER_PLATFORM = 1 << 36;
        /// `VIRTIO_F_NOTIFICATION_DATA`: a kick carries the queue's index and position.
        const NOTIFICATION_DATA = 1 << 38;
        /// `VIRTIO_F_NOTIF_CONFIG_DATA`: a kick carries a value that the device chose instead of the queue's index.
        const NOTIF_CONFIG_DATA = 1 << 39;
        /// `VIRTIO_F_RING_RESET`: a queue can be reset alone.
        const RING_RESET = 1 << 40;
    }
}

bitflags! {
    /// Flags of a descriptor (§2.7.5, §2.8.14).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DescriptorFlags: u16 {
        /// The chain goes on: at `next` (split), in the next slot (packed).
        const NEXT = 1;
        /// The buffer is written by the device, not read.
        const WRITE = 2;
        /// The buffer is a table of descriptors.
        const INDIRECT = 4;
        /// Packed ring: the available mark (§2.8.1).
        const AVAIL = 1 << 7;
        /// Packed ring: the used mark (§2.8.1).
        const USED = 1 << 15;
    }
}

/// The split ring (§2.7).
pub mod split {
    use super::*;

    /// `virtq_desc` (§2.7.5).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
    #[repr(C)]
    pub struct Descriptor {
        /// Address of the buffer, in the address space of the device.
        pub addr: U64,
        /// Bytes in the buffer.
        pub len: U32,
        /// [`DescriptorFlags`].
        pub flags: U16,
        /// Index of the next descriptor, where `NEXT` is set.
        pub next: U16,
    }

    /// Alignment of the descriptor table, in bytes.
    pub const DESCRIPTOR_ALIGN: u64 = 16;
    /// Alignment of the available ring, in bytes.
    pub const AVAIL_ALIGN: u64 = 2;
    /// Alignment of the used ring, in bytes.
    pub const USED_ALIGN: u64 = 4;

    /// `virtq_avail.flags`: the driver does not need an interrupt (§2.7.6).
    pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
    /// `virtq_used.flags`: the device does not need a kick (§2.7.8).
    pub const USED_F_NO_NOTIFY: u16 = 1;

    /// Offset of `flags` in both rings.
    pub const FLAGS: usize = 0;
    /// Offset of `idx` in both rings.
    pub const IDX: usize = 2;

    /// Offset of the slot `slot` of the available ring.
    pub const fn avail_slot(slot: usize) -> usize {
        4 + 2 * slot
    }

    /// Offset of the slot `slot` of the used ring: a 32-bit id, then a 32-bit length.
    pub const fn used_slot(slot: usize) -> usize {
        4 + 8 * slot
    }

    /// Bytes in the descriptor table of a queue of `size`.
    pub const fn descriptor_table_len(size: usize) -> usize {
        16 * size
    }

    /// Bytes in the available ring of a queue of `size`, `used_event` included; without it, it is `used_event`'s offset.
    pub const fn avail_len(size: usize, event_idx: bool) -> usize {
        avail_slot(size) + if event_idx { 2 } else { 0 }
    }

    /// Bytes in the used ring of a queue of `size`, `avail_event` included; without it, it is `avail_event`'s offset.
    pub const fn used_len(size: usize, event_idx: bool) -> usize {
        used_slot(size) + if event_idx { 2 } else { 0 }
    }
}

/// The packed ring (§2.8).
pub mod packed {
    use super::*;

    /// `pvirtq_desc` (§2.8.13).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
    #[repr(C)]
    pub struct Descriptor {
        /// Address of the buffer, in the address space of the device.
        pub addr: U64,
        /// Bytes in the buffer; in a used descriptor, bytes written.
        pub len: U32,
        /// Buffer ID.
        pub id: U16,
        /// [`DescriptorFlags`].
        pub flags: U16,
    }

    impl Descriptor {
        /// The flags, of which unknown ones are kept.
        #[inline(always)]
        pub fn flags(&self) -> DescriptorFlags {
            DescriptorFlags::from_bits_retain(self.flags.get())
        }
    }

    /// The event suppression structure (§2.8.14).
    #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
    #[repr(C)]
    pub struct EventSuppression {
        /// With [`EVENT_DESC`]: the slot at which an event is wanted, and in bit 15 the wrap counter there.
        pub off_wrap: U16,
        /// One of the `EVENT_` constants, in the low two bits.
        pub flags: U16,
    }

    /// Bit 15 of `off_wrap`.
    pub const WRAP: u16 = 1 << 15;
    /// The bits of `flags` that count.
    pub const EVENT_MASK: u16 = 3;
    /// Events are wanted.
    pub const EVENT_ENABLE: u16 = 0;
    /// Events are not wanted.
    pub const EVENT_DISABLE: u16 = 1;
    /// An event is wanted at one descriptor; needs `EVENT_IDX`.
    pub const EVENT_DESC: u16 = 2;

    /// Alignment of the descriptor ring, in bytes.
    pub const DESCRIPTOR_ALIGN: u64 = 16;
    /// Alignment of the event suppression structures, in bytes.
    pub const EVENT_ALIGN: u64 = 4;
    /// Bytes in an event suppression structure.
    pub const EVENT_LEN: usize = 4;

    /// Bytes in the descriptor ring of a queue of `size`.
    pub const fn descriptor_ring_len(size: usize) -> usize {
        16 * size
    }
}
