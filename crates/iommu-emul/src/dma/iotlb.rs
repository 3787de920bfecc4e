use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::{Access, Leaf};

const SMALL_SLOTS: usize = 512;
const LARGE_SLOTS: usize = 64;
const SMALL_SHIFT: u32 = 12;
const LARGE_SHIFT: u32 = 21;

/// The IOTLB of one device: direct-mapped, one part for 4 KiB pages and one for larger ones, which it holds at the granularity of
/// 2 MiB. Any number of threads look up, without a lock; whoever changes it holds the cache's lock.
#[derive(Debug)]
pub(super) struct Iotlb {
    small: Box<[Slot]>,
    large: Box<[Slot]>,
}

/// A cached page. Lookups read it optimistically: an odd or changed sequence number makes what they read void.
#[derive(Debug)]
#[repr(align(32))]
struct Slot {
    sequence: AtomicU64,
    /// Input address without its low bits; all ones if the slot is empty, which no address shifted right can be.
    tag: AtomicU64,
    page: AtomicU64,
}

const EMPTY: u64 = u64::MAX;

impl Slot {
    const fn new() -> Self {
        Self {
            sequence: AtomicU64::new(0),
            tag: AtomicU64::new(EMPTY),
            page: AtomicU64::new(0),
        }
    }

    #[inline]
    fn get(&self, tag: u64) -> Option<Leaf> {
        let before = self.sequence.load(Ordering::Acquire);
        if self.tag.load(Ordering::Relaxed) != tag {
            return None;
        }
        let page = self.page.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let after = self.sequence.load(Ordering::Relaxed);
        (before == after && before & 1 == 0).then(|| unpack(page))
    }

    fn set(&self, tag: u64, page: u64) {
        let sequence = self.sequence.load(Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.tag.store(tag, Ordering::Relaxed);
        self.page.store(page, Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(2), Ordering::Release);
    }

    /// Empties the slot if its page, which `shift` places in the input addresses, overlaps `from..=to`.
    fn invalidate(&self, shift: u32, (from, to): (u64, u64)) {
        let tag = self.tag.load(Ordering::Relaxed);
        if tag == EMPTY {
            return;
        }
        let size = 1 << unpack(self.page.load(Ordering::Relaxed)).shift;
        let first = (tag << shift) & !(size - 1);
        if first <= to && from <= first | (size - 1) {
            self.set(EMPTY, 0);
        }
    }
}

// A page fits a word: its address is aligned to at least 4 KiB, permissions and size lie below.
const READ: u64 = 1;
const WRITE: u64 = 2;

fn pack(leaf: Leaf) -> u64 {
    let read = if leaf.read { READ } else { 0 };
    let write = if leaf.write { WRITE } else { 0 };
    leaf.output | u64::from(leaf.shift) << 2 | read | write
}

#[inline]
fn unpack(page: u64) -> Leaf {
    let [low, ..] = page.to_le_bytes();
    Leaf {
        output: page & !0xfff,
        shift: u32::from(low >> 2),
        read: page & READ != 0,
        write: page & WRITE != 0,
    }
}

#[inline]
fn slot(slots: &[Slot], tag: u64) -> Option<&Slot> {
    let [a, b, ..] = tag.to_le_bytes();
    slots.get(usize::from(u16::from_le_bytes([a, b])) & (slots.len() - 1))
}

impl Iotlb {
    pub fn new() -> Self {
        let slots = |count| (0..count).map(|_| Slot::new()).collect();
        Self {
            small: slots(SMALL_SLOTS),
            large: slots(LARGE_SLOTS),
        }
    }

    /// The page of `address`, if it is cached and allows `access`.
    #[inline]
    pub fn get(&self, address: u64, access: Access) -> Option<Leaf> {
        let cached = |slots, shift| {
            let tag = address >> shift;
            slot(slots, tag)?.get(tag)
        };
        cached(&self.small, SMALL_SHIFT)
            .or_else(|| cached(&self.large, LARGE_SHIFT))
            .filter(|leaf| leaf.allows(access))
    }

    /// Caches the page of `address`. Only under the cache's lock.
    pub fn insert(&self, address: u64, leaf: Leaf) {
        let (slots, shift) = if leaf.shift < LARGE_SHIFT {
            (&self.small, SMALL_SHIFT)
        } else {
            (&self.large, LARGE_SHIFT)
        };
        let tag = address >> shift;
        if let Some(slot) = slot(slots, tag) {
            slot.set(tag, pack(leaf));
        }
    }

    /// Drops every page that overlaps `first..=last`. Only under the cache's lock.
    pub fn invalidate(&self, first: u64, last: u64) {
        const PROBES: u64 = 64;
        let (from, to) = (first >> SMALL_SHIFT, last >> SMALL_SHIFT);
        if to.saturating_sub(from) < PROBES {
            for slot in (from..=to).filter_map(|tag| slot(&self.small, tag)) {
                slot.invalidate(SMALL_SHIFT, (first, last));
            }
        } else {
            for slot in &self.small {
                slot.invalidate(SMALL_SHIFT, (first, last));
            }
        }
        for slot in &self.large {
            slot.invalidate(LARGE_SHIFT, (first, last));
        }
    }
}
