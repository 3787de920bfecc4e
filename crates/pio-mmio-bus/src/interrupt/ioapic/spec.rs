//! Registers of the I/O APIC: Intel 82093AA data sheet (290566), §3; the EOI register is that of version 0x20, in the chipsets'
//! data sheets (Intel ICH9 §13.5.1).

use bitflags::bitflags;

use crate::interrupt::MsiMessage;
use crate::pci::RequesterId;

/// Register select: which register [`WINDOW`] shows.
pub const SELECT: u64 = 0x00;
/// The selected register, 32 bits.
pub const WINDOW: u64 = 0x10;
/// A written vector ends its interrupt.
pub const EOI: u64 = 0x40;

/// Identification: bits 27:24.
pub const ID: u8 = 0x00;
/// Version, and the number of the last pin.
pub const VERSION: u8 = 0x01;
/// Arbitration identification.
pub const ARBITRATION: u8 = 0x02;
/// The redirection table: two registers for each pin.
pub const REDIRECTION: u8 = 0x10;

/// Number of pins.
pub const PINS: usize = 24;
/// What the version register reads: the first version with an EOI register, 24 pins.
pub const VERSION_VALUE: u32 = 0x0017_0020;
/// The bits of the identification register that hold what is written.
pub const ID_MASK: u32 = 0x0f00_0000;

bitflags! {
    /// A redirection table entry (§3.2.4). Bits 63:48 are the destination, and with interrupt remapping the format and the
    /// index of the remapping entry (VT-d §5.1.5.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Redirection: u64 {
        /// Interrupt vector.
        const VECTOR = 0xff;
        /// Delivery mode.
        const DELIVERY = 0x7 << 8;
        /// Destination mode: logical.
        const LOGICAL = 1 << 11;
        /// Delivery status, read-only; always idle here.
        const SENDING = 1 << 12;
        /// Active low. Lines are asserted or not, so this changes nothing.
        const ACTIVE_LOW = 1 << 13;
        /// Level-triggered and sent, not ended yet; read-only.
        const REMOTE_IRR = 1 << 14;
        /// Level-triggered.
        const LEVEL = 1 << 15;
        /// Nothing is sent.
        const MASKED = 1 << 16;
        /// Destination.
        const DESTINATION = 0xffff << 48;
    }
}

impl Redirection {
    /// The bits that hold what is written.
    pub const WRITABLE: Self = Self::all()
        .difference(Self::SENDING)
        .difference(Self::REMOTE_IRR);

    /// The interrupt vector.
    pub const fn vector(self) -> u8 {
        self.bits().to_le_bytes()[0]
    }

    /// The message that the entry sends: the entry's fields where an MSI has them (Intel SDM vol. 3, §11.11).
    pub fn message(self, requester: RequesterId) -> MsiMessage {
        const ADDRESS: u64 = 0xfee0_0000;
        const LOGICAL: u64 = 1 << 2;
        const ASSERT: u32 = 1 << 14;
        let [vector, flags, .., low, high] = self.bits().to_le_bytes();
        let destination = u64::from(u16::from_le_bytes([low, high])) << 4;
        let logical = if self.contains(Self::LOGICAL) {
            LOGICAL
        } else {
            0
        };
        let level = if self.contains(Self::LEVEL) {
            ASSERT
        } else {
            0
        };
        // The delivery mode and the trigger mode are where they are in the entry.
        let modes = u32::from(flags & 0x87) << 8;
        MsiMessage {
            requester,
            address: ADDRESS | destination | logical,
            data: u32::from(vector) | modes | level,
        }
    }
}
