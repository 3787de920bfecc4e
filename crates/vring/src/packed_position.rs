//! Positions in a packed ring: a slot and a wrap counter, which starts at true and flips at the end of the ring (§2.8.1).

use crate::event::passed_slot;
use crate::spec::DescriptorFlags;
use crate::spec::packed::WRAP;
use crate::state::PackedPosition;

const MARKS: DescriptorFlags = DescriptorFlags::AVAIL.union(DescriptorFlags::USED);

/// The marks of a descriptor that is available to a device whose wrap counter is `wrap`.
#[inline(always)]
pub(crate) fn available_marks(wrap: bool) -> DescriptorFlags {
    if wrap {
        DescriptorFlags::AVAIL
    } else {
        DescriptorFlags::USED
    }
}

/// The marks of a descriptor that was used by a device whose wrap counter was `wrap`.
#[inline(always)]
pub(crate) fn used_marks(wrap: bool) -> DescriptorFlags {
    if wrap {
        MARKS
    } else {
        DescriptorFlags::empty()
    }
}

/// Whether a descriptor with these flags is available to a device whose wrap counter is `wrap`.
#[inline(always)]
pub(crate) fn available(flags: u16, wrap: bool) -> bool {
    flags & MARKS.bits() == available_marks(wrap).bits()
}

/// Whether a descriptor with these flags was used by a device whose wrap counter was `wrap`.
#[inline(always)]
pub(crate) fn used(flags: u16, wrap: bool) -> bool {
    flags & MARKS.bits() == used_marks(wrap).bits()
}

/// The position in one word (§2.8.10): the wrap counter is bit 15.
pub(crate) fn off_wrap(at: PackedPosition) -> u16 {
    if at.wrap { at.slot | WRAP } else { at.slot }
}

/// The position `slots` further, which is not more than the queue size.
#[inline(always)]
pub(crate) fn step(at: PackedPosition, slots: u16, size: u16) -> PackedPosition {
    // The sum of two numbers up to 32768, one of them below it, fits.
    let slot = at.slot.wrapping_add(slots);
    let wraps = slot >= size;
    PackedPosition {
        slot: if wraps { slot - size } else { slot },
        wrap: at.wrap != wraps,
    }
}

/// The position as a number below twice the queue size.
fn number(at: PackedPosition, size: u16) -> u32 {
    u32::from(at.slot) + if at.wrap { 0 } else { u32::from(size) }
}

/// Slots from one position to another, below twice the queue size.
pub(crate) fn distance(from: PackedPosition, to: PackedPosition, size: u16) -> u16 {
    let (from, to) = (number(from, size), number(to, size));
    let slots = match to.checked_sub(from) {
        Some(slots) => slots,
        None => 2 * u32::from(size) + to - from,
    };
    u16::try_from(slots).unwrap_or(u16::MAX)
}

/// Whether the position asked for is among the `passed` slots before `at` (§2.8.10). The other side may ask for a
/// position that does not exist; any answer is right then.
pub(crate) fn passed_event(off_wrap: u16, at: PackedPosition, passed: u32, size: u16) -> bool {
    let event = PackedPosition {
        slot: off_wrap & !WRAP,
        wrap: off_wrap & WRAP != 0,
    };
    let (event_number, at) = (number(event, size), number(at, size));
    event.slot >= size || passed_slot(event_number, at, passed, 2 * u32::from(size))
}
