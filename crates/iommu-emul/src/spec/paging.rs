//! Paging-structure entries of the first and second stage (§9.7, §9.8).

use super::{bits, mask};

/// Index of `address` in a table of `level` (1 is the lowest): 9 bits a level above the 12 of a page (§3.6, §3.7).
pub const fn index(address: u64, level: u8) -> u64 {
    (address >> page_shift(level)) & 0x1ff
}

/// log2 of the bytes that one entry of a table of `level` covers.
pub const fn page_shift(level: u8) -> u32 {
    12 + 9 * (level as u32 - 1)
}

/// Width in bits of the addresses that `levels` levels of tables translate.
pub const fn address_bits(levels: u8) -> u32 {
    12 + 9 * levels as u32
}

/// A second-stage entry (§9.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondStageEntry(pub u64);

impl SecondStageEntry {
    /// R: readable.
    pub const fn read(self) -> bool {
        self.0 & 1 != 0
    }

    /// W: writable.
    pub const fn write(self) -> bool {
        self.0 & 2 != 0
    }

    /// PS: the entry maps a page although it is above the lowest level.
    pub const fn page(self) -> bool {
        self.0 & (1 << 7) != 0
    }

    /// Address of the next table or of the page.
    pub const fn address(self) -> u64 {
        self.0 & mask(51, 12)
    }

    /// A reserved field is set, given the entry's level, whether it maps a page, and whether snoop control exists
    /// (else the SNP bit of a page is reserved). Bit 62, transient mapping, is reserved without device-TLBs.
    pub const fn reserved(self, level: u8, page: bool, snoop_control: bool) -> bool {
        let mut reserved = 1 << 62 | if page && snoop_control { 0 } else { 1 << 11 };
        if page && level > 1 {
            reserved |= mask(page_shift(level) - 1, 12);
        }
        if level > 3 {
            reserved |= 1 << 7;
        }
        self.0 & reserved != 0
    }
}

/// A first-stage entry (§9.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirstStageEntry(pub u64);

impl FirstStageEntry {
    /// A: accessed.
    pub const ACCESSED: u64 = 1 << 5;
    /// D: dirty, of an entry that maps a page.
    pub const DIRTY: u64 = 1 << 6;

    /// P: present.
    pub const fn present(self) -> bool {
        self.0 & 1 != 0
    }

    /// R/W: writable.
    pub const fn write(self) -> bool {
        self.0 & 2 != 0
    }

    /// U/S: user-privilege requests may use it.
    pub const fn user(self) -> bool {
        self.0 & 4 != 0
    }

    /// PS: the entry maps a page although it is above the lowest level.
    pub const fn page(self) -> bool {
        self.0 & (1 << 7) != 0
    }

    /// Address of the next table or of the page.
    pub const fn address(self) -> u64 {
        self.0 & mask(51, 12)
    }

    /// A reserved field is set, given the entry's level and whether it maps a page. (Bit 12 of a large page is PAT.)
    pub const fn reserved(self, level: u8, page: bool) -> bool {
        let mut reserved = 0;
        if page && level > 1 {
            reserved |= mask(page_shift(level) - 1, 13);
        }
        if level > 3 {
            reserved |= 1 << 7;
        }
        self.0 & reserved != 0
    }
}

/// Whether `address` is canonical for `levels` levels of first-stage tables: the bits above repeat the highest (§3.6).
pub const fn canonical(address: u64, levels: u8) -> bool {
    let high = bits(address, 63, address_bits(levels) - 1);
    high == 0 || high == bits(u64::MAX, 63, address_bits(levels) - 1)
}
