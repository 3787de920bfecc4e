//! Interrupt requests and interrupt remapping entries (§5.1, §5.2, §9.10 to §9.12).

use super::{bits, low8, low16, low32, mask};

/// First address of the interrupt address range (§3.14).
pub const RANGE_FIRST: u64 = 0xfee0_0000;
/// Last address of the interrupt address range.
pub const RANGE_LAST: u64 = 0xfeef_ffff;

/// The address of a message in the interrupt address range (§5.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestAddress(pub u32);

impl RequestAddress {
    /// Interrupt format: remappable, else compatibility (§5.1.2.1).
    pub const fn remappable(self) -> bool {
        self.0 & (1 << 4) != 0
    }

    /// SHV: the message data holds a subhandle.
    pub const fn subhandle_valid(self) -> bool {
        self.0 & (1 << 3) != 0
    }

    /// The 16-bit handle.
    pub const fn handle(self) -> u16 {
        let word = self.0 as u64;
        low16(bits(word, 19, 5) | bits(word, 2, 2) << 15)
    }
}

/// An interrupt remapping table entry (§9.10, §9.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptEntry(pub [u64; 2]);

impl InterruptEntry {
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

    /// IM: the entry is of the posted format (§9.11).
    pub const fn posted(self) -> bool {
        self.0[0] & (1 << 15) != 0
    }

    /// The vector: of the interrupt, or to set in the posted interrupt descriptor.
    pub const fn vector(self) -> u8 {
        low8(self.0[0] >> 16)
    }

    /// DM: logical destination mode.
    pub const fn logical(self) -> bool {
        self.0[0] & (1 << 2) != 0
    }

    /// RH: redirection hint.
    pub const fn redirection_hint(self) -> bool {
        self.0[0] & (1 << 3) != 0
    }

    /// TM: level-triggered.
    pub const fn level(self) -> bool {
        self.0[0] & (1 << 4) != 0
    }

    /// DLM: delivery mode, 3 bits as in the message data (SDM vol. 3, §11.11.2).
    pub const fn delivery_mode(self) -> u8 {
        low8(bits(self.0[0], 7, 5))
    }

    /// DST: destination APIC identifier; 8 bits of it in bits 15:8 unless `extended` interrupt mode.
    pub const fn destination(self, extended: bool) -> u32 {
        if extended {
            low32(self.0[0] >> 32)
        } else {
            low32(bits(self.0[0], 47, 40))
        }
    }

    /// URG: the posted interrupt is urgent.
    pub const fn urgent(self) -> bool {
        self.0[0] & (1 << 14) != 0
    }

    /// Address of the posted interrupt descriptor, aligned to 64 bytes.
    pub const fn posted_descriptor(self) -> u64 {
        bits(self.0[0], 63, 38) << 6 | self.0[1] & mask(63, 32)
    }

    /// Whether the entry lets `source` interrupt (§5.1.4, SVT, SQ and SID); `None` if the check itself is reserved.
    pub const fn verifies(self, source: u16) -> Option<bool> {
        let sid = low16(self.0[1]);
        match bits(self.0[1], 19, 18) {
            0 => Some(true),
            1 => {
                let ignored = match bits(self.0[1], 17, 16) {
                    0 => 0,
                    1 => 0b100,
                    2 => 0b110,
                    _ => 0b111,
                };
                Some((sid ^ source) & !ignored == 0)
            }
            2 => {
                let bus = source >> 8;
                Some(sid >> 8 <= bus && bus <= sid & 0xff)
            }
            _ => None,
        }
    }

    /// A reserved field is set.
    pub const fn reserved(self, extended: bool) -> bool {
        let [low, high] = self.0;
        if self.posted() {
            low & (mask(37, 24) | mask(13, 12) | mask(7, 2)) != 0 || high & mask(31, 20) != 0
        } else {
            let destination = if extended {
                0
            } else {
                mask(63, 48) | mask(39, 32)
            };
            low & (mask(31, 24) | mask(14, 12) | destination) != 0 || high & mask(63, 20) != 0
        }
    }
}

/// The control word of a posted interrupt descriptor (§9.12), its bits 319:256; the 256 bits below are the requests (PIR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PostedControl(pub u64);

impl PostedControl {
    /// Offset of the word in the descriptor, in bytes.
    pub const OFFSET: u64 = 32;
    /// ON: a notification is outstanding.
    pub const OUTSTANDING: u64 = 1;
    /// SN: notifications of interrupts that are not urgent are suppressed.
    pub const SUPPRESS: u64 = 2;

    /// Whether posting an interrupt sends the notification (§5.2.3).
    pub const fn notifies(self, urgent: bool) -> bool {
        self.0 & Self::OUTSTANDING == 0 && (urgent || self.0 & Self::SUPPRESS == 0)
    }

    /// NV: the notification vector.
    pub const fn vector(self) -> u8 {
        low8(self.0 >> 16)
    }

    /// NDST: destination of the notification, 8 bits of it in bits 15:8 unless `extended`.
    pub const fn destination(self, extended: bool) -> u32 {
        if extended {
            low32(self.0 >> 32)
        } else {
            low32(bits(self.0, 47, 40))
        }
    }

    /// A reserved field is set.
    pub const fn reserved(self) -> bool {
        self.0 & (mask(31, 24) | mask(15, 2)) != 0
    }
}
