//! Positions in a packed ring: a slot and a wrap counter, which starts at true and flips at the end of the ring (§2.8.1).

use crate::spec::DescriptorFlags;
use crate::spec::packed::WRAP;
use crate::state::PackedPosition;

/// Whether a descriptor with these flags is available to a device whose wrap counter is `wrap`.
pub(crate) fn available(flags: u16, wrap: bool) -> bool {
    let flags = DescriptorFlags::from_bits_retain(flags);
    flags.contains(DescriptorFlags::AVAIL) == wrap && flags.contains(DescriptorFlags::USED) != wrap
}

/// Whether a descriptor with these flags was used by a device whose wrap counter was `wrap`.
pub(crate) fn used(flags: u16, wrap: bool) -> bool {
    let flags = DescriptorFlags::from_bits_retain(flags);
    flags.contains(DescriptorFlags::AVAIL) == wrap && flags.contains(DescriptorFlags::USED) == wrap
}

/// The position in one word (§2.8.10): the wrap counter is bit 15.
pub(crate) fn off_wrap(at: PackedPosition) -> u16 {
    if at.wrap { at.slot | WRAP } else { at.slot }
}

/// The position `slots` further, which is not more than the queue size.
pub(crate) fn step(at: PackedPosition, slots: u16, size: u16) -> PackedPosition {
    // The sum of two numbers up to 32768 fits.
    match (at.slot.saturating_add(slots)).checked_sub(size) {
        Some(slot) => PackedPosition {
            slot,
            wrap: !at.wrap,
        },
        None => PackedPosition {
            slot: at.slot + slots,
            wrap: at.wrap,
        },
    }
}

/// The position as a number below twice the queue size.
fn number(at: PackedPosition, size: u16) -> u32 {
    u32::from(at.slot) + if at.wrap { 0 } else { u32::from(size) }
}

/// Slots from one position to another, below twice the queue size.
pub(crate) fn distance(from: PackedPosition, to: PackedPosition, size: u16) -> u16 {
    let twice = 2 * u32::from(size);
    let slots = (twice + number(to, size) - number(from, size)) % twice;
    u16::try_from(slots).unwrap_or(u16::MAX)
}

/// Whether the position asked for is among the `passed` slots before `at` (§2.8.10). The other side may ask for a
/// position that does not exist; any answer is right then.
pub(crate) fn passed_event(off_wrap: u16, at: PackedPosition, passed: u32, size: u16) -> bool {
    let event = PackedPosition {
        slot: off_wrap & !WRAP,
        wrap: off_wrap & WRAP != 0,
    };
    if event.slot >= size || passed >= 2 * u32::from(size) {
        return true;
    }
    // The event is the slot whose use is wanted to be known: passed when `at` is beyond it.
    let beyond = u32::from(distance(event, at, size));
    beyond != 0 && beyond <= passed
}
