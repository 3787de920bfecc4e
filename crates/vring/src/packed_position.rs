//! Positions in a packed ring: a slot and a wrap counter, which starts at true and flips at the end of the ring (§2.8.1).

use crate::event::passed_slot;
use crate::spec::DescriptorFlags;
use crate::spec::packed::WRAP;
use crate::state::PackedPosition;

const MARKS: DescriptorFlags = DescriptorFlags::AVAIL.union(DescriptorFlags::USED);

/// A position. The slot is in a word of its own: of a narrower one, processors wait for the store before they load it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Position {
    slot: u32,
    /// The marks of a descriptor that is used here: both if the wrap counter is true, or none.
    marks: u16,
}

impl Position {
    /// Where both sides begin.
    pub(crate) const START: Self = Self {
        slot: 0,
        marks: MARKS.bits(),
    };

    /// The slot, below the queue size.
    #[inline(always)]
    pub(crate) fn slot(self) -> u16 {
        u16::try_from(self.slot).unwrap_or(0)
    }

    /// Offset of the slot's descriptor.
    #[inline(always)]
    pub(crate) fn offset(self) -> usize {
        16 * self.slot as usize
    }

    fn wrap(self) -> bool {
        self.marks != 0
    }

    /// Whether a descriptor with these flags is available here.
    #[inline(always)]
    pub(crate) fn is_available(self, flags: u16) -> bool {
        (flags ^ self.marks) & MARKS.bits() == DescriptorFlags::USED.bits()
    }

    /// Whether a descriptor with these flags was used here.
    #[inline(always)]
    pub(crate) fn is_used(self, flags: u16) -> bool {
        flags & MARKS.bits() == self.marks
    }

    /// The marks of a descriptor that is made available here.
    #[inline(always)]
    pub(crate) fn available_marks(self) -> DescriptorFlags {
        DescriptorFlags::from_bits_retain(self.marks ^ DescriptorFlags::USED.bits())
    }

    /// The marks of a descriptor that is used here.
    #[inline(always)]
    pub(crate) fn used_marks(self) -> DescriptorFlags {
        DescriptorFlags::from_bits_retain(self.marks)
    }

    /// The position in one word (§2.8.10): the wrap counter is bit 15.
    pub(crate) fn off_wrap(self) -> u16 {
        self.slot() | if self.wrap() { WRAP } else { 0 }
    }

    /// The position `slots` further, which is not more than the queue size.
    #[inline(always)]
    pub(crate) fn step(self, slots: u16, size: u16) -> Self {
        let at = Self {
            slot: self.slot + u32::from(slots),
            ..self
        };
        if at.slot < u32::from(size) {
            at
        } else {
            at.wrapped(size)
        }
    }

    /// A position that went beyond the end of the ring. Once a lap, so it is predicted better than it is computed.
    #[cold]
    #[inline(never)]
    fn wrapped(self, size: u16) -> Self {
        Self {
            slot: self.slot - u32::from(size),
            marks: self.marks ^ MARKS.bits(),
        }
    }

    /// The position as a number below twice the queue size.
    fn number(self, size: u16) -> u32 {
        self.slot + if self.wrap() { 0 } else { u32::from(size) }
    }

    /// Slots from here to another position, below twice the queue size.
    pub(crate) fn distance(self, to: Self, size: u16) -> u32 {
        let (from, to) = (self.number(size), to.number(size));
        match to.checked_sub(from) {
            Some(slots) => slots,
            None => 2 * u32::from(size) + to - from,
        }
    }

    /// Whether the position asked for is among the `passed` slots before this one (§2.8.10). The other side may ask for a
    /// position that does not exist; any answer is right then.
    pub(crate) fn passed_event(self, off_wrap: u16, passed: u32, size: u16) -> bool {
        let event = Self::from(PackedPosition {
            slot: off_wrap & !WRAP,
            wrap: off_wrap & WRAP != 0,
        });
        let (event_number, at) = (event.number(size), self.number(size));
        event.slot >= u32::from(size) || passed_slot(event_number, at, passed, 2 * u32::from(size))
    }
}

impl From<PackedPosition> for Position {
    fn from(PackedPosition { slot, wrap }: PackedPosition) -> Self {
        Self {
            slot: slot.into(),
            marks: if wrap { MARKS.bits() } else { 0 },
        }
    }
}

impl From<Position> for PackedPosition {
    fn from(at: Position) -> Self {
        Self {
            slot: at.slot(),
            wrap: at.wrap(),
        }
    }
}
