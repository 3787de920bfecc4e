//! Invalidation queue descriptors (§6.5.2).

use super::{bits, low8, low16, low32, mask};

/// A request of the invalidation queue, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// Context-cache invalidate (§6.5.2.1).
    ContextCache(ContextScope),
    /// PASID-cache invalidate (§6.5.2.2).
    PasidCache(PasidScope),
    /// IOTLB invalidate (§6.5.2.3).
    Iotlb(IotlbScope),
    /// PASID-based IOTLB invalidate (§6.5.2.4).
    PasidIotlb {
        /// Domain identifier.
        domain: u16,
        /// The PASID.
        pasid: u32,
        /// The pages, or all of the PASID.
        pages: Option<Pages>,
    },
    /// Device-TLB invalidate, with or without PASID (§6.5.2.5, §6.5.2.6).
    DeviceTlb {
        /// The device.
        source: u16,
    },
    /// Interrupt entry cache invalidate (§6.5.2.7).
    InterruptEntryCache(InterruptScope),
    /// Invalidation wait (§6.5.2.8).
    Wait(Wait),
}

/// What a context-cache invalidation covers (§6.5.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextScope {
    /// Everything.
    Global,
    /// The entries of a domain.
    Domain(u16),
    /// The entries of a source, and of those that differ in the function bits that `mask` names.
    Device {
        /// Requester ID.
        source: u16,
        /// FM: how many of the function bits are ignored: none, bit 2, bits 2:1, bits 2:0.
        mask: u8,
    },
}

impl ContextScope {
    /// Whether a device-selective invalidation of `source` with function mask `mask` covers `requester` (§6.5.1.1).
    pub const fn covers_source(source: u16, mask: u8, requester: u16) -> bool {
        let ignored = match mask {
            0 => 0,
            1 => 0b100,
            2 => 0b110,
            _ => 0b111,
        };
        (source ^ requester) & !ignored == 0
    }

    /// Decodes granularity, domain, source and function mask; `None` is the reserved granularity 0.
    pub const fn decode(granularity: u64, domain: u16, source: u16, mask: u8) -> Option<Self> {
        match granularity {
            1 => Some(Self::Global),
            2 => Some(Self::Domain(domain)),
            3 => Some(Self::Device { source, mask }),
            _ => None,
        }
    }
}

/// What a PASID-cache invalidation covers (§6.5.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PasidScope {
    /// Everything.
    Global,
    /// The entries of a domain.
    Domain(u16),
    /// The entry of a PASID with a domain.
    Pasid {
        /// Domain identifier.
        domain: u16,
        /// The PASID.
        pasid: u32,
    },
}

/// What an IOTLB invalidation covers (§6.5.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IotlbScope {
    /// Everything.
    Global,
    /// A domain.
    Domain(u16),
    /// Pages of a domain.
    Pages(u16, Pages),
}

impl IotlbScope {
    /// Decodes granularity, domain and the address word of a descriptor or the address register; `None` is a reserved
    /// granularity.
    pub const fn decode(granularity: u64, domain: u16, address: u64) -> Option<Self> {
        match granularity {
            1 => Some(Self::Global),
            2 => Some(Self::Domain(domain)),
            3 => Some(Self::Pages(domain, Pages::decode(address))),
            _ => None,
        }
    }
}

/// A naturally aligned range of 2^`order` pages of 4 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pages {
    /// First address, aligned to the size.
    pub address: u64,
    /// log2 of the number of pages (AM), 0 to 52.
    pub order: u8,
}

impl Pages {
    /// The range that covers every address.
    pub const ALL: Self = Self {
        address: 0,
        order: 52,
    };

    /// The range of 2^`order` pages that contains `address`.
    pub const fn containing(address: u64, order: u8) -> Self {
        let order = if order > 52 { 52 } else { order };
        let offset = u64::MAX >> (52 - order as u32);
        Self {
            address: address & !offset,
            order,
        }
    }

    const fn decode(word: u64) -> Self {
        Self::containing(word & mask(63, 12), low8(bits(word, 5, 0)))
    }

    /// The last address.
    pub const fn last(self) -> u64 {
        self.address | (u64::MAX >> (52 - self.order as u32))
    }
}

/// What an interrupt entry cache invalidation covers (§6.5.2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptScope {
    /// Everything.
    Global,
    /// 2^`order` entries around an index.
    Entries {
        /// First index, aligned to the number of entries.
        index: u16,
        /// log2 of the number of entries (IM), 0 to 16.
        order: u8,
    },
}

impl InterruptScope {
    /// Whether entry `index` is covered.
    pub const fn covers(self, index: u16) -> bool {
        match self {
            Self::Global => true,
            Self::Entries {
                index: first,
                order,
            } => order >= 16 || (first ^ index) >> order == 0,
        }
    }
}

/// An invalidation wait (§6.5.2.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// SW: write `data` to `address` on completion.
    pub status_write: bool,
    /// IF: set ICS.IWC and raise the invalidation event on completion.
    pub interrupt: bool,
    /// Status data.
    pub data: u32,
    /// Status address, aligned to 4 bytes.
    pub address: u64,
}

/// Why a descriptor was not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorError {
    /// The type is not known.
    Type,
    /// A reserved field is set or a field has a reserved value.
    Reserved,
}

impl Descriptor {
    /// Decodes the words of a descriptor; the upper two are 0 for 128-bit descriptors.
    pub const fn decode(words: [u64; 4]) -> Result<Self, DescriptorError> {
        let [low, high, third, fourth] = words;
        let kind = bits(low, 11, 9) << 4 | bits(low, 3, 0);
        // What each type leaves reserved: of the low word (its type fields aside), of the high word.
        let reserved = match kind {
            1 => (mask(63, 50) | mask(15, 12) | mask(8, 6), u64::MAX),
            2 => (mask(63, 32) | mask(15, 12) | mask(8, 8), mask(11, 7)),
            3 => (mask(51, 48) | mask(31, 21) | mask(8, 4), mask(11, 1)),
            4 => (mask(63, 48) | mask(26, 12) | mask(8, 5), u64::MAX),
            // Page-request drain, bit 7, goes with page requests, which no unit here has.
            5 => (mask(31, 12) | mask(8, 7), mask(1, 0)),
            6 => (mask(63, 52) | mask(15, 12) | mask(8, 6), mask(11, 7)),
            7 => (mask(63, 52) | mask(15, 12) | mask(8, 6), u64::MAX),
            8 => (mask(8, 4), mask(10, 1)),
            _ => return Err(DescriptorError::Type),
        };
        if low & reserved.0 != 0 || high & reserved.1 != 0 || third != 0 || fourth != 0 {
            return Err(DescriptorError::Reserved);
        }
        let granularity = bits(low, 5, 4);
        let domain = low16(low >> 16);
        let decoded = match kind {
            1 => match ContextScope::decode(
                granularity,
                domain,
                low16(low >> 32),
                low8(bits(low, 49, 48)),
            ) {
                Some(scope) => Self::ContextCache(scope),
                None => return Err(DescriptorError::Reserved),
            },
            2 => match IotlbScope::decode(granularity, domain, high) {
                Some(scope) => Self::Iotlb(scope),
                None => return Err(DescriptorError::Reserved),
            },
            3 => Self::DeviceTlb {
                source: low16(low >> 32),
            },
            4 if bits(low, 4, 4) == 0 => Self::InterruptEntryCache(InterruptScope::Global),
            4 => Self::InterruptEntryCache(InterruptScope::Entries {
                index: low16(low >> 32),
                order: low8(bits(low, 31, 27)),
            }),
            5 => Self::Wait(Wait {
                status_write: low & (1 << 5) != 0,
                interrupt: low & (1 << 4) != 0,
                data: low32(low >> 32),
                address: high,
            }),
            6 => Self::PasidIotlb {
                domain,
                pasid: low32(bits(low, 51, 32)),
                pages: match granularity {
                    2 => None,
                    3 => Some(Pages::decode(high)),
                    _ => return Err(DescriptorError::Reserved),
                },
            },
            7 => Self::PasidCache(match granularity {
                0 => PasidScope::Domain(domain),
                1 => PasidScope::Pasid {
                    domain,
                    pasid: low32(bits(low, 51, 32)),
                },
                3 => PasidScope::Global,
                _ => return Err(DescriptorError::Reserved),
            }),
            _ => Self::DeviceTlb {
                source: low16(low >> 16),
            },
        };
        Ok(decoded)
    }
}
