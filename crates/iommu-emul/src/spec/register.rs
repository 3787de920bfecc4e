//! The remapping hardware's registers (§11.4).

use bitflags::bitflags;

/// Version: major 1, minor 0, what remapping hardware with legacy and scalable mode reports ("Version Register").
pub const VERSION: u32 = 0x10;

/// Offsets of the registers with a fixed place, in bytes from the unit's base (§11.4, table of registers).
///
/// The IOTLB and fault recording registers lie where ECAP.IRO and CAP.FRO say.
pub mod offset {
    /// Version.
    pub const VER: u16 = 0x00;
    /// Capability, 64 bits.
    pub const CAP: u16 = 0x08;
    /// Extended capability, 64 bits.
    pub const ECAP: u16 = 0x10;
    /// Global command.
    pub const GCMD: u16 = 0x18;
    /// Global status.
    pub const GSTS: u16 = 0x1c;
    /// Root table address, 64 bits.
    pub const RTADDR: u16 = 0x20;
    /// Context command, 64 bits.
    pub const CCMD: u16 = 0x28;
    /// Fault status.
    pub const FSTS: u16 = 0x34;
    /// Fault event control.
    pub const FECTL: u16 = 0x38;
    /// Fault event data.
    pub const FEDATA: u16 = 0x3c;
    /// Fault event address.
    pub const FEADDR: u16 = 0x40;
    /// Fault event upper address.
    pub const FEUADDR: u16 = 0x44;
    /// Invalidation queue head, 64 bits.
    pub const IQH: u16 = 0x80;
    /// Invalidation queue tail, 64 bits.
    pub const IQT: u16 = 0x88;
    /// Invalidation queue address, 64 bits.
    pub const IQA: u16 = 0x90;
    /// Invalidation completion status.
    pub const ICS: u16 = 0x9c;
    /// Invalidation event control.
    pub const IECTL: u16 = 0xa0;
    /// Invalidation event data.
    pub const IEDATA: u16 = 0xa4;
    /// Invalidation event address.
    pub const IEADDR: u16 = 0xa8;
    /// Invalidation event upper address.
    pub const IEUADDR: u16 = 0xac;
    /// Invalidation queue error record, 64 bits.
    pub const IQERCD: u16 = 0xb0;
    /// Interrupt remapping table address, 64 bits.
    pub const IRTA: u16 = 0xb8;
    /// The first offset that is free for the IOTLB and fault recording registers.
    pub const FIRST_FREE: u16 = 0xf0;
}

bitflags! {
    /// Flags of the capability register; its fields are in [`cap`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Cap: u64 {
        /// Caching mode: entries that are not present may be cached too (§6.1).
        const CM = 1 << 7;
        /// Second-stage and first-stage tables of 3 levels (39 bits).
        const SAGAW_39 = 1 << 9;
        /// Tables of 4 levels (48 bits).
        const SAGAW_48 = 1 << 10;
        /// Tables of 5 levels (57 bits).
        const SAGAW_57 = 1 << 11;
        /// Zero-length reads of write-only pages are supported.
        const ZLR = 1 << 22;
        /// Second-stage pages of 2 MiB.
        const SSLPS_2M = 1 << 34;
        /// Second-stage pages of 1 GiB.
        const SSLPS_1G = 1 << 35;
        /// Page-selective invalidation.
        const PSI = 1 << 39;
        /// Write draining.
        const DWD = 1 << 54;
        /// Read draining.
        const DRD = 1 << 55;
        /// First-stage pages of 1 GiB.
        const FS1GP = 1 << 56;
        /// Interrupt posting.
        const PI = 1 << 59;
        /// First-stage tables of 5 levels.
        const FS5LP = 1 << 60;
    }
}

/// Fields of the capability register.
pub mod cap {
    /// ND for 16-bit domain identifiers (2^(4 + 2 × ND) domains).
    pub const ND_16_BITS: u64 = 6;
    /// Position of MGAW, the maximum guest address width minus 1.
    pub const MGAW_SHIFT: u32 = 16;
    /// Position of FRO, the offset of the fault recording registers in units of 16 bytes.
    pub const FRO_SHIFT: u32 = 24;
    /// Position of NFR, the number of fault recording registers minus 1.
    pub const NFR_SHIFT: u32 = 40;
    /// Position of MAMV, the largest address mask of a page-selective invalidation.
    pub const MAMV_SHIFT: u32 = 48;
}

bitflags! {
    /// Flags of the extended capability register; its fields are in [`ecap`].
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Ecap: u64 {
        /// Page walks are coherent: the guest need not flush its caches.
        const C = 1 << 0;
        /// Queued invalidation.
        const QI = 1 << 1;
        /// Device-TLBs.
        const DT = 1 << 2;
        /// Interrupt remapping.
        const IR = 1 << 3;
        /// Extended interrupt mode: 32-bit (x2APIC) destinations.
        const EIM = 1 << 4;
        /// Pass-through translation type.
        const PT = 1 << 6;
        /// Snoop control.
        const SC = 1 << 7;
        /// Nested translation.
        const NEST = 1 << 26;
        /// Supervisor requests.
        const SRS = 1 << 31;
        /// Requests with PASID.
        const PASID = 1 << 40;
        /// Scalable mode.
        const SMTS = 1 << 43;
        /// Second-stage translation in scalable mode.
        const SSTS = 1 << 46;
        /// First-stage translation in scalable mode.
        const FSTS = 1 << 47;
        /// Page walks of scalable mode are coherent.
        const SMPWCS = 1 << 48;
    }
}

/// Fields of the extended capability register.
pub mod ecap {
    /// Position of IRO, the offset of the IOTLB registers in units of 16 bytes.
    pub const IRO_SHIFT: u32 = 8;
    /// Position of MHMV, the largest handle mask of an interrupt entry cache invalidation.
    pub const MHMV_SHIFT: u32 = 20;
    /// Position of PSS, the width of a PASID in bits minus 1.
    pub const PSS_SHIFT: u32 = 35;
}

bitflags! {
    /// The global command and global status registers: a command bit and the status bit that answers it are in the same place.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Global: u32 {
        /// Translation enable / status.
        const TRANSLATION = 1 << 31;
        /// Set root table pointer / its status.
        const ROOT_TABLE_POINTER = 1 << 30;
        /// Write buffer flush; reads as 0.
        const WRITE_BUFFER_FLUSH = 1 << 27;
        /// Queued invalidation enable / status.
        const QUEUED_INVALIDATION = 1 << 26;
        /// Interrupt remapping enable / status.
        const INTERRUPT_REMAPPING = 1 << 25;
        /// Set interrupt remapping table pointer / its status.
        const INTERRUPT_TABLE_POINTER = 1 << 24;
        /// Compatibility format interrupts pass / do pass.
        const COMPATIBILITY_FORMAT = 1 << 23;
    }
}

bitflags! {
    /// The fault status register without its fault record index.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FaultStatus: u32 {
        /// Primary fault overflow; write 1 to clear.
        const PFO = 1 << 0;
        /// Primary pending fault: some fault recording register holds one; read-only.
        const PPF = 1 << 1;
        /// Invalidation queue error; write 1 to clear.
        const IQE = 1 << 4;
        /// Invalidation completion error; write 1 to clear.
        const ICE = 1 << 5;
        /// Invalidation time-out error; write 1 to clear.
        const ITE = 1 << 6;
    }
}

/// Position of FRI, the index of the first pending fault, in the fault status register.
pub const FSTS_FRI_SHIFT: u32 = 8;

bitflags! {
    /// The fault event and invalidation event control registers.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct EventControl: u32 {
        /// The message is masked.
        const IM = 1 << 31;
        /// A message is pending; read-only.
        const IP = 1 << 30;
    }
}

/// IWC of the invalidation completion status register: a wait descriptor with the interrupt flag completed; write 1 to clear.
pub const ICS_IWC: u32 = 1;

/// Writable bits of an event data register: a 16-bit message.
pub const EVENT_DATA_MASK: u32 = 0xffff;
/// Writable bits of an event address register.
pub const EVENT_ADDRESS_MASK: u32 = !3;

/// The root table address register ("Root Table Address Register").
pub mod rtaddr {
    use super::super::{bits, mask};

    /// Writable bits: address and translation table mode.
    pub const WRITABLE: u64 = mask(63, 10);

    /// Address of the root table.
    pub const fn address(register: u64) -> u64 {
        register & mask(63, 12)
    }

    /// Translation table mode: 0 legacy, 1 scalable, 3 abort all DMA; 2 is reserved.
    pub const fn mode(register: u64) -> u64 {
        bits(register, 11, 10)
    }
}

/// The context command register ("Context Command Register").
pub mod ccmd {
    use super::super::{bits, mask};

    /// Invalidate context-cache: the command, and busy while it runs.
    pub const ICC: u64 = 1 << 63;
    /// Writable bits besides ICC: granularity, function mask, source and domain identifiers.
    pub const WRITABLE: u64 = mask(62, 61) | mask(33, 0);
    /// Position of the granularity that was carried out.
    pub const CAIG_SHIFT: u32 = 59;
    /// The write-only fields: function mask and source identifier.
    pub const WRITE_ONLY: u64 = mask(33, 16);

    /// The granularity that is asked for.
    pub const fn granularity(register: u64) -> u64 {
        bits(register, 62, 61)
    }
}

/// The IOTLB invalidate register and its address register ("IOTLB Registers").
pub mod iotlb {
    use super::super::{bits, mask};

    /// Invalidate IOTLB: the command, and busy while it runs.
    pub const IVT: u64 = 1 << 63;
    /// Writable bits besides IVT: granularity, drain flags and domain identifier.
    pub const WRITABLE: u64 = mask(61, 60) | mask(49, 32);
    /// Position of the granularity that was carried out.
    pub const IAIG_SHIFT: u32 = 57;
    /// Writable bits of the address register: address, hint and mask, all of which are write-only.
    pub const IVA_WRITABLE: u64 = mask(63, 12) | mask(6, 0);

    /// The granularity that is asked for.
    pub const fn granularity(register: u64) -> u64 {
        bits(register, 61, 60)
    }

    /// The domain identifier.
    pub const fn domain(register: u64) -> u16 {
        super::super::low16(register >> 32)
    }
}

/// The invalidation queue registers ("Invalidation Queue … Register").
pub mod queue {
    use super::super::{bits, mask};

    /// Bits of the head and tail registers that hold an offset.
    pub const INDEX_MASK: u64 = mask(18, 4);
    /// Writable bits of the address register: address, descriptor width and size.
    pub const IQA_WRITABLE: u64 = mask(63, 11) | mask(2, 0);

    /// Address of the queue.
    pub const fn address(iqa: u64) -> u64 {
        iqa & mask(63, 12)
    }

    /// Whether descriptors are 256 bits wide.
    pub const fn wide(iqa: u64) -> bool {
        bits(iqa, 11, 11) != 0
    }

    /// Size of the queue in bytes: 2^QS pages of 4 KiB.
    pub const fn size(iqa: u64) -> u64 {
        4096 << bits(iqa, 2, 0)
    }
}

/// What the error record register tells of an invalidation queue error ("Invalidation Queue Error Record Register", IQEI).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum QueueError {
    /// The tail lies outside the queue.
    Tail = 1,
    /// The descriptor could not be fetched.
    Fetch = 2,
    /// The type is not known.
    Type = 3,
    /// A reserved field is set or a field has a reserved value.
    Reserved = 4,
    /// The descriptor width does not go with the translation table mode.
    Width = 5,
    /// The tail is not aligned to the descriptor width.
    TailAlignment = 6,
}

/// The interrupt remapping table address register ("Interrupt Remapping Table Address Register").
pub mod irta {
    use super::super::{bits, mask};

    /// Writable bits: address, extended interrupt mode and size.
    pub const WRITABLE: u64 = mask(63, 11) | mask(3, 0);

    /// Address of the table.
    pub const fn address(register: u64) -> u64 {
        register & mask(63, 12)
    }

    /// Whether destinations are 32 bits wide (x2APIC).
    pub const fn extended(register: u64) -> bool {
        bits(register, 11, 11) != 0
    }

    /// Number of entries: 2^(S + 1).
    pub const fn entries(register: u64) -> u64 {
        2 << bits(register, 3, 0)
    }
}
