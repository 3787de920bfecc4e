//! Grant table entries and operations (`grant_table.h`).

use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{DomId, argument};

/// The index of an entry of a domain's grant table (`grant_ref_t`).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct GrantRef(pub u32);

/// Entries at the start of each table that the tool stack fills in (`GNTTAB_NR_RESERVED_ENTRIES`).
pub const RESERVED_ENTRIES: u32 = 8;
/// The reserved entry of the console's page.
pub const CONSOLE: GrantRef = GrantRef(0);
/// The reserved entry of the xenstore page.
pub const XENSTORE: GrantRef = GrantRef(1);

/// Bytes of a version 1 entry: the header, then the frame as 32 bits.
pub const V1_ENTRY: usize = 8;
/// Bytes of a version 2 entry.
pub const V2_ENTRY: usize = 16;
/// Bytes of an entry's status in version 2.
pub const V2_STATUS: usize = 2;

/// Where the fields of an entry lie, in bytes.
pub mod offset {
    /// Version 1: the frame, 32 bits.
    pub const V1_FRAME: usize = 4;
    /// Version 2, sub-page: first byte that is granted (16 bits), then the length (16 bits).
    pub const V2_RANGE: usize = 4;
    /// Version 2, full page and sub-page: the frame, 64 bits.
    pub const V2_FRAME: usize = 8;
    /// Version 2, transitive: the domain that granted first, 16 bits and 16 of padding.
    pub const V2_TRANS_DOMAIN: usize = 4;
    /// Version 2, transitive: its grant reference, 32 bits.
    pub const V2_TRANS_REF: usize = 8;
}

bitflags! {
    /// The flags of an entry, and those of a version 2 status (`GTF_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct EntryFlags: u16 {
        /// The low bit of the entry's type.
        const PERMIT_ACCESS = 1;
        /// The high bit of the entry's type.
        const ACCEPT_TRANSFER = 2;
        /// Both bits of the type: a grant that passes on another domain's.
        const TRANSITIVE = 3;
        /// The granted frame must not be written.
        const READONLY = 1 << 2;
        /// The frame is mapped, or being read. Set by the hypervisor.
        const READING = 1 << 3;
        /// The frame is mapped for writing, or being written. Set by the hypervisor.
        const WRITING = 1 << 4;
        /// Cache attribute: write-through.
        const PWT = 1 << 5;
        /// Cache attribute: no caching.
        const PCD = 1 << 6;
        /// Cache attribute: PAT.
        const PAT = 1 << 7;
        /// Only part of the page is granted (version 2).
        const SUB_PAGE = 1 << 8;
        const _ = !0;
    }
}

impl EntryFlags {
    /// A frame is on its way: the entry must not be touched until it is there (`GTF_transfer_committed`).
    pub const TRANSFER_COMMITTED: Self = Self::READONLY;
    /// The frame has arrived (`GTF_transfer_completed`).
    pub const TRANSFER_COMPLETED: Self = Self::READING;
    /// Someone uses the frame.
    pub const IN_USE: Self = Self::READING.union(Self::WRITING);
    /// The bits of the type; all clear is an invalid entry.
    pub const TYPE: Self = Self::TRANSITIVE;
}

/// The header of an entry: what the hypervisor compares and swaps as one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The type and the flags.
    pub flags: EntryFlags,
    /// The domain that may use the entry.
    pub domain: DomId,
}

impl Header {
    /// The header in a word of a table.
    pub const fn from_word(word: u32) -> Self {
        let [a, b, c, d] = word.to_le_bytes();
        Self {
            flags: EntryFlags::from_bits_retain(u16::from_le_bytes([a, b])),
            domain: DomId(u16::from_le_bytes([c, d])),
        }
    }

    /// The word in a table.
    pub const fn word(self) -> u32 {
        let [a, b] = self.flags.bits().to_le_bytes();
        let [c, d] = self.domain.0.to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }
}

bitflags! {
    /// How a grant is mapped (`GNTMAP_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct MapFlags: u32 {
        /// For devices.
        const DEVICE = 1;
        /// Into the caller's memory.
        const HOST = 1 << 1;
        /// Not to be written.
        const READONLY = 1 << 2;
        /// Into the application's memory (PV guests only).
        const APPLICATION = 1 << 3;
        /// The address is that of a page table entry (PV guests only).
        const CONTAINS_PTE = 1 << 4;
        const _ = !0;
    }
}

bitflags! {
    /// Which side of a copy is named by a grant reference (`GNTCOPY_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CopyFlags: u16 {
        /// The source is.
        const SOURCE_REF = 1;
        /// The destination is.
        const DEST_REF = 2;
        const _ = !0;
    }
}

bitflags! {
    /// What to do with cached data (`GNTTAB_CACHE_*`).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CacheFlags: u32 {
        /// Write it back.
        const CLEAN = 1;
        /// Drop it.
        const INVALIDATE = 2;
        /// The page is named by a grant reference, which nobody implements.
        const SOURCE_REF = 1 << 31;
        const _ = !0;
    }
}

/// Why an operation was refused (`GNTST_*`, all but okay).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(i16)]
pub enum Refusal {
    /// Any other reason.
    #[error("the operation failed")]
    General = -1,
    /// There is no such domain.
    #[error("no such domain")]
    BadDomain = -2,
    /// There is no such grant reference, or it cannot be used like that.
    #[error("bad grant reference")]
    BadGrantRef = -3,
    /// There is no such mapping.
    #[error("bad handle")]
    BadHandle = -4,
    /// The virtual address is unsuitable.
    #[error("bad virtual address")]
    BadVirtualAddress = -5,
    /// The device's address is unsuitable.
    #[error("bad device address")]
    BadDeviceAddress = -6,
    /// No mapping is left.
    #[error("no space for mappings")]
    NoDeviceSpace = -7,
    /// The caller may not do this.
    #[error("permission denied")]
    PermissionDenied = -8,
    /// The frame is unsuitable.
    #[error("bad page")]
    BadPage = -9,
    /// The copy crosses a page's end.
    #[error("bad copy argument")]
    BadCopyArgument = -10,
    /// The frame's number is too large for the table.
    #[error("frame number too large")]
    AddressTooBig = -11,
    /// Nothing was done: try again.
    #[error("try again")]
    TryAgain = -12,
    /// No space is left.
    #[error("no space")]
    NoSpace = -13,
}

impl Refusal {
    /// The refusal with this status; [`General`](Self::General) for one that is none.
    pub const fn from_status(status: i16) -> Self {
        match status {
            -2 => Self::BadDomain,
            -3 => Self::BadGrantRef,
            -4 => Self::BadHandle,
            -5 => Self::BadVirtualAddress,
            -6 => Self::BadDeviceAddress,
            -7 => Self::NoDeviceSpace,
            -8 => Self::PermissionDenied,
            -9 => Self::BadPage,
            -10 => Self::BadCopyArgument,
            -11 => Self::AddressTooBig,
            -12 => Self::TryAgain,
            -13 => Self::NoSpace,
            _ => Self::General,
        }
    }

    /// The status field of an operation.
    pub const fn status(result: Result<(), Self>) -> i16 {
        match result {
            Ok(()) => 0,
            Err(refusal) => refusal as i16,
        }
    }
}

/// The operations of the hypercall (`GNTTABOP_*`).
pub mod op {
    /// Map granted frames.
    pub const MAP: u32 = 0;
    /// Unmap them.
    pub const UNMAP: u32 = 1;
    /// Get frames of the table.
    pub const SETUP_TABLE: u32 = 2;
    /// Print a table: no longer there.
    pub const DUMP_TABLE: u32 = 3;
    /// Give frames away.
    pub const TRANSFER: u32 = 4;
    /// Copy between frames.
    pub const COPY: u32 = 5;
    /// How large the table is and may become.
    pub const QUERY_SIZE: u32 = 6;
    /// Unmap frames and put others in their place.
    pub const UNMAP_AND_REPLACE: u32 = 7;
    /// Choose the version of the caller's table.
    pub const SET_VERSION: u32 = 8;
    /// Get the frames of the statuses of version 2.
    pub const GET_STATUS_FRAMES: u32 = 9;
    /// The version of a table.
    pub const GET_VERSION: u32 = 10;
    /// Swap two entries.
    pub const SWAP_GRANT_REF: u32 = 11;
    /// Flush caches of a frame.
    pub const CACHE_FLUSH: u32 = 12;
    /// The bits of the command that are the operation; those above are the state of a continuation.
    pub const MASK: u32 = (1 << 12) - 1;
}

argument!(
    /// Maps a grant (`gnttab_map_grant_ref`).
    MapGrantRef {
        /// In: where to map it, with [`MapFlags::HOST`].
        host_address: u64,
        /// In: [`MapFlags`].
        flags: u32,
        /// In: the grant.
        reference: GrantRef,
        /// In: whose it is.
        domain: DomId,
        /// Out: 0 or a [`Refusal`].
        status: i16,
        /// Out: names the mapping.
        handle: u32,
        /// Out: the frame's machine address.
        device_address: u64,
    }
);
argument!(
    /// Unmaps a grant (`gnttab_unmap_grant_ref`).
    UnmapGrantRef {
        /// In: where it is mapped; 0 leaves that mapping.
        host_address: u64,
        /// In: the frame's machine address, to end the mapping for devices; 0 leaves that.
        device_address: u64,
        /// In: the mapping.
        handle: u32,
        /// Out: 0 or a [`Refusal`].
        status: i16,
        /// Padding.
        padding: u16,
    }
);
argument!(
    /// Asks for frames of a table (`gnttab_setup_table`).
    SetupTable {
        /// In: whose table.
        domain: DomId,
        /// Padding.
        padding: u16,
        /// In: how many frames.
        frames: u32,
        /// Out: 0 or a [`Refusal`].
        status: i16,
        /// Padding.
        padding2: [u16; 3],
        /// In: where the frames' numbers go, 64 bits each.
        frame_list: u64,
    }
);
argument!(
    /// Gives a frame away (`gnttab_transfer`).
    Transfer {
        /// In: the caller's frame.
        frame: u64,
        /// In: who gets it.
        domain: DomId,
        /// Padding.
        padding: u16,
        /// In: the entry that accepts it.
        reference: GrantRef,
        /// Out: 0 or a [`Refusal`].
        status: i16,
        /// Padding.
        padding2: [u16; 3],
    }
);
argument!(
    /// One side of a copy (`gnttab_copy_ptr`).
    CopySide {
        /// The frame, or the grant reference in the low 32 bits.
        page: u64,
        /// Whose it is.
        domain: DomId,
        /// First byte in the page.
        offset: u16,
        /// Padding.
        padding: u32,
    }
);

impl CopySide {
    /// The grant reference that names the page.
    pub const fn reference(&self) -> GrantRef {
        let [a, b, c, d, ..] = self.page.to_le_bytes();
        GrantRef(u32::from_le_bytes([a, b, c, d]))
    }
}

argument!(
    /// Copies within and between pages (`gnttab_copy`).
    Copy {
        /// In: from where.
        source: CopySide,
        /// In: to where.
        dest: CopySide,
        /// In: bytes.
        length: u16,
        /// In: [`CopyFlags`].
        flags: u16,
        /// Out: 0 or a [`Refusal`].
        status: i16,
        /// Padding.
        padding: u16,
    }
);
argument!(
    /// Asks for a table's size (`gnttab_query_size`).
    QuerySize {
        /// In: whose table.
        domain: DomId,
        /// Padding.
        padding: u16,
        /// Out: its frames.
        frames: u32,
        /// Out: frames that it may have.
        max_frames: u32,
        /// Out: 0 or a [`Refusal`].
        status: i16,
        /// Padding.
        padding2: u16,
    }
);
argument!(
    /// Unmaps a grant and moves another mapping there (`gnttab_unmap_and_replace`).
    UnmapAndReplace {
        /// In: where the grant is mapped.
        host_address: u64,
        /// In: the address whose mapping moves there; 0 for none.
        new_address: u64,
        /// In: the mapping.
        handle: u32,
        /// Out: 0 or a [`Refusal`].
        status: i16,
        /// Padding.
        padding: u16,
    }
);
argument!(
    /// Chooses the version of the caller's table (`gnttab_set_version`).
    SetVersion {
        /// In: 1 or 2. Out: what it is.
        version: u32,
    }
);
argument!(
    /// Asks for frames of the statuses (`gnttab_get_status_frames`).
    GetStatusFrames {
        /// In: how many frames.
        frames: u32,
        /// In: whose.
        domain: DomId,
        /// Out: 0 or a [`Refusal`].
        status: i16,
        /// In: where the frames' numbers go, 64 bits each.
        frame_list: u64,
    }
);
argument!(
    /// Asks for a table's version (`gnttab_get_version`).
    GetVersion {
        /// In: whose table.
        domain: DomId,
        /// Padding.
        padding: u16,
        /// Out.
        version: u32,
    }
);
argument!(
    /// Swaps two entries of the caller's table (`gnttab_swap_grant_ref`).
    SwapGrantRef {
        /// In.
        a: GrantRef,
        /// In.
        b: GrantRef,
        /// Out: 0 or a [`Refusal`].
        status: i16,
        /// Padding.
        padding: u16,
    }
);
argument!(
    /// Flushes caches of a mapped frame (`gnttab_cache_flush`).
    CacheFlush {
        /// In: the frame's machine address.
        device_address: u64,
        /// In: first byte in the page.
        offset: u16,
        /// In: bytes.
        length: u16,
        /// In: [`CacheFlags`].
        operation: u32,
    }
);
