//! Layouts of the Intel VT-d architecture, as numbers and fields; no behaviour.
//!
//! Sections are those of the *Intel Virtualization Technology for Directed I/O, Architecture Specification*, revision 4.1.
//! Registers are cited by name within §11.4 because their numbering moved between revisions and their names did not.

pub mod fault;
pub mod interrupt;
pub mod invalidation;
pub mod paging;
pub mod register;
pub mod translation;

/// Bits `high..=low` of `word`, moved down to bit 0.
pub(crate) const fn bits(word: u64, high: u32, low: u32) -> u64 {
    (word >> low) & (u64::MAX >> (63 - (high - low)))
}

/// A mask of bits `high..=low`.
pub(crate) const fn mask(high: u32, low: u32) -> u64 {
    (u64::MAX >> (63 - (high - low))) << low
}

/// The low byte of `word`.
pub(crate) const fn low8(word: u64) -> u8 {
    word.to_le_bytes()[0]
}

/// The low 16 bits of `word`.
pub(crate) const fn low16(word: u64) -> u16 {
    let [a, b, ..] = word.to_le_bytes();
    u16::from_le_bytes([a, b])
}

/// The low 32 bits of `word`.
pub(crate) const fn low32(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}
