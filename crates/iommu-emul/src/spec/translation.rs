//! Root, context and PASID entries (§9.1 to §9.6).
//!
//! Each type is the words of one entry as read from memory. `reserved` tells whether a reserved field is set; addresses above the
//! host address width are the walk's business.

use super::{bits, low8, low16, low32, mask};

/// A root entry of legacy mode (§9.1), or either half of one of scalable mode (§9.2): the two share their layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootEntry(pub u64);

impl RootEntry {
    /// Size of a whole entry in the table, in bytes: two words in both modes.
    pub const SIZE: u64 = 16;

    /// P (or LP, UP): the entry is present.
    pub const fn present(self) -> bool {
        self.0 & 1 != 0
    }

    /// Address of the context table.
    pub const fn context_table(self) -> u64 {
        self.0 & mask(63, 12)
    }

    /// A reserved field is set.
    pub const fn reserved(self) -> bool {
        self.0 & mask(11, 1) != 0
    }
}

/// A context entry of legacy mode (§9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextEntry(pub [u64; 2]);

/// The translation type of a context entry (§9.3, TT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TranslationType {
    /// Untranslated requests go through the second stage; others are blocked.
    Untranslated,
    /// As before, and translation and translated requests are served too.
    DeviceTlb,
    /// Untranslated requests pass.
    PassThrough,
    /// Reserved value.
    Reserved,
}

impl ContextEntry {
    /// Size of an entry in bytes.
    pub const SIZE: u64 = 16;

    /// P: the entry is present.
    pub const fn present(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// FPD: faults of this entry are not recorded.
    pub const fn fault_processing_disabled(self) -> bool {
        self.0[0] & 2 != 0
    }

    /// TT: what requests go through.
    pub const fn translation_type(self) -> TranslationType {
        match bits(self.0[0], 3, 2) {
            0 => TranslationType::Untranslated,
            1 => TranslationType::DeviceTlb,
            2 => TranslationType::PassThrough,
            _ => TranslationType::Reserved,
        }
    }

    /// Address of the second-stage root table.
    pub const fn second_stage(self) -> u64 {
        self.0[0] & mask(63, 12)
    }

    /// AW: the address width, as the number of table levels minus 2.
    pub const fn address_width(self) -> u8 {
        low8(bits(self.0[1], 2, 0))
    }

    /// The domain identifier.
    pub const fn domain(self) -> u16 {
        low16(self.0[1] >> 8)
    }

    /// A reserved field is set.
    pub const fn reserved(self) -> bool {
        self.0[0] & mask(11, 4) != 0 || self.0[1] & (mask(63, 24) | mask(7, 7)) != 0
    }
}

/// A context entry of scalable mode (§9.4); the upper two of its four words are reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScalableContextEntry(pub [u64; 4]);

impl ScalableContextEntry {
    /// Size of an entry in bytes.
    pub const SIZE: u64 = 32;

    /// P: the entry is present.
    pub const fn present(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// FPD: faults of this entry are not recorded.
    pub const fn fault_processing_disabled(self) -> bool {
        self.0[0] & 2 != 0
    }

    /// PASIDE: requests with PASID are served.
    pub const fn pasid_enabled(self) -> bool {
        self.0[0] & 8 != 0
    }

    /// Number of PASIDs that the directory covers: 2^(PDTS + 7) entries of 64 PASIDs.
    pub const fn pasids(self) -> u64 {
        64 << (bits(self.0[0], 11, 9) + 7)
    }

    /// Address of the PASID directory.
    pub const fn pasid_directory(self) -> u64 {
        self.0[0] & mask(63, 12)
    }

    /// RID_PASID: the PASID that requests without one use.
    pub const fn rid_pasid(self) -> u32 {
        low32(bits(self.0[1], 19, 0))
    }

    /// A reserved field is set.
    pub const fn reserved(self) -> bool {
        self.0[0] & mask(8, 5) != 0
            || self.0[1] & mask(63, 21) != 0
            || self.0[2] != 0
            || self.0[3] != 0
    }
}

/// A PASID directory entry (§9.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasidDirectoryEntry(pub u64);

impl PasidDirectoryEntry {
    /// Size of an entry in bytes.
    pub const SIZE: u64 = 8;

    /// The directory entry of a PASID.
    pub const fn index(pasid: u32) -> u32 {
        pasid >> 6
    }

    /// P: the entry is present.
    pub const fn present(self) -> bool {
        self.0 & 1 != 0
    }

    /// FPD: faults of this entry are not recorded.
    pub const fn fault_processing_disabled(self) -> bool {
        self.0 & 2 != 0
    }

    /// Address of the PASID table.
    pub const fn pasid_table(self) -> u64 {
        self.0 & mask(63, 12)
    }

    /// A reserved field is set.
    pub const fn reserved(self) -> bool {
        self.0 & mask(11, 2) != 0
    }
}

/// A PASID table entry (§9.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasidEntry(pub [u64; 8]);

/// The translation type of a PASID table entry (§9.6, PGTT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasidTranslationType {
    /// First stage only.
    FirstStage,
    /// Second stage only.
    SecondStage,
    /// First stage, each of its addresses through the second.
    Nested,
    /// No translation.
    PassThrough,
    /// Reserved value.
    Reserved,
}

impl PasidEntry {
    /// Size of an entry in bytes.
    pub const SIZE: u64 = 64;

    /// The entry of a PASID in its table.
    pub const fn index(pasid: u32) -> u32 {
        pasid & 0x3f
    }

    /// P: the entry is present.
    pub const fn present(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// FPD: faults of this entry are not recorded.
    pub const fn fault_processing_disabled(self) -> bool {
        self.0[0] & 2 != 0
    }

    /// AW: the second stage's address width, as the number of table levels minus 2.
    pub const fn address_width(self) -> u8 {
        low8(bits(self.0[0], 4, 2))
    }

    /// PGTT: what requests go through.
    pub const fn translation_type(self) -> PasidTranslationType {
        match bits(self.0[0], 8, 6) {
            1 => PasidTranslationType::FirstStage,
            2 => PasidTranslationType::SecondStage,
            3 => PasidTranslationType::Nested,
            4 => PasidTranslationType::PassThrough,
            _ => PasidTranslationType::Reserved,
        }
    }

    /// Address of the second-stage root table.
    pub const fn second_stage(self) -> u64 {
        self.0[0] & mask(63, 12)
    }

    /// The domain identifier.
    pub const fn domain(self) -> u16 {
        low16(self.0[1])
    }

    /// FSPM: the first stage has 5 levels (1) or 4 (0); other values are reserved.
    pub const fn first_stage_mode(self) -> u64 {
        bits(self.0[2], 3, 2)
    }

    /// WPE: supervisor writes honour the write bit.
    pub const fn write_protect(self) -> bool {
        self.0[2] & (1 << 4) != 0
    }

    /// Address of the first-stage root table.
    pub const fn first_stage(self) -> u64 {
        self.0[2] & mask(63, 12)
    }

    /// A reserved field is set. SRE counts as reserved unless `supervisor`, as does ERE, which is never supported.
    pub const fn reserved(self, supervisor: bool) -> bool {
        let [first, second, third, rest @ ..] = self.0;
        let sre = if supervisor { 0 } else { 1 };
        first & (mask(11, 9) | mask(5, 5)) != 0
            || second & mask(22, 16) != 0
            || third & (mask(11, 5) | mask(1, 1) | sre) != 0
            || rest[0] | rest[1] | rest[2] | rest[3] | rest[4] != 0
    }
}
