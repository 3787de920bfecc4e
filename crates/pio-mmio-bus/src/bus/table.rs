use std::sync::Arc;

use super::BusDevice;
use super::index::{Index, Range};
use super::region::Region;

/// 1, 2, 4 and 8 bytes.
const WIDTHS: u8 = 1 | 2 | 4 | 8;

/// What readers look up: the regions that are placed, by address. Immutable.
pub struct Table {
    index: Index<Segment>,
    /// Whether accesses are timed. Then each goes the long way.
    pub accounting: bool,
}

/// A part of a region whose addresses are treated alike. With the tag of its bucket it fills a cache line.
#[derive(Clone)]
pub struct Segment {
    first: u64,
    /// Inclusive.
    last: u64,
    /// First address of the region.
    base: u64,
    /// The widths, one bit each, of which an access in this segment goes to the device and nowhere else: all or none.
    /// Not a `bool`: its unused values would hold the bucket's tag, which takes more instructions to get at.
    direct: u8,
    device: Arc<dyn BusDevice>,
    region: Arc<Region>,
}

impl Table {
    /// Lays out `regions`, which do not overlap.
    pub fn build<'a>(regions: impl Iterator<Item = &'a Arc<Region>>, accounting: bool) -> Self {
        let mut segments = Vec::new();
        for region in regions {
            split(region, accounting, &mut segments);
        }
        segments.sort_unstable_by_key(|segment| segment.first);
        Self {
            index: Index::build(&segments),
            accounting,
        }
    }

    /// The segment that holds `address`.
    #[inline]
    pub fn find(&self, address: u64) -> Option<&Segment> {
        let segment = self.index.find(address)?;
        (segment.first <= address && address <= segment.last).then_some(segment)
    }
}

impl Segment {
    /// The device and the offset in it, if an access of `width` bytes at `address`, which is in this segment, needs
    /// nothing more than that.
    #[inline]
    pub fn direct(&self, address: u64, width: usize) -> Option<(&dyn BusDevice, u64)> {
        let room = self.last.wrapping_sub(address);
        let bit = u8::try_from(width).unwrap_or(0);
        let direct = self.direct & bit != 0 && bit.is_power_of_two() && u64::from(bit) - 1 <= room;
        direct.then(|| (&*self.device, address.wrapping_sub(self.base)))
    }

    /// The region, and the offset of `address` in it.
    pub fn region(&self, address: u64) -> (&Region, u64) {
        (&self.region, address.wrapping_sub(self.base))
    }
}

/// Cuts a region where hooks and doorbells begin and end, so that accesses beside them cost nothing extra.
fn split(region: &Arc<Region>, accounting: bool, segments: &mut Vec<Range<Segment>>) {
    let Some(place) = region.place else {
        return;
    };
    let mut push = |first: u64, last: u64, plain: bool| {
        let value = Segment {
            first,
            last,
            base: place.first,
            direct: if plain { WIDTHS } else { 0 },
            device: Arc::clone(&region.device),
            region: Arc::clone(region),
        };
        segments.push(Range { first, last, value });
    };
    if accounting {
        push(place.first, place.last, false);
        return;
    }
    let mut next = Some(place.first);
    for overlaid in region.overlaid() {
        let first = place.first.saturating_add(*overlaid.start());
        let last = place.first.saturating_add(*overlaid.end());
        if let Some(begin) = next.filter(|&begin| begin < first) {
            push(begin, first - 1, true);
        }
        push(first, last, false);
        next = last.checked_add(1);
    }
    if let Some(begin) = next.filter(|&begin| begin <= place.last) {
        push(begin, place.last, true);
    }
}
