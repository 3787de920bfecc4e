use std::sync::Arc;

use super::region::Region;
use super::{AccessError, BusDevice};

/// What readers look up: the regions that are placed, by address. Immutable.
pub struct Table {
    /// First address of each segment, ascending: apart from the rest, so that a search touches few cache lines.
    firsts: Box<[u64]>,
    segments: Box<[Segment]>,
}

/// A range of addresses that are treated alike.
pub struct Segment {
    /// Last address, inclusive.
    last: u64,
    /// First address of the region.
    base: u64,
    device: Arc<dyn BusDevice>,
}

impl Table {
    /// Lays out `regions`, which do not overlap.
    pub fn build<'a>(regions: impl Iterator<Item = &'a Arc<Region>>) -> Self {
        let mut segments: Vec<(u64, Segment)> = regions
            .filter_map(|region| {
                let place = region.place?;
                Some((
                    place.first,
                    Segment {
                        last: place.last,
                        base: place.first,
                        device: Arc::clone(&region.device),
                    },
                ))
            })
            .collect();
        segments.sort_unstable_by_key(|(first, _)| *first);
        let (firsts, segments): (Vec<_>, Vec<_>) = segments.into_iter().unzip();
        Self {
            firsts: firsts.into(),
            segments: segments.into(),
        }
    }

    /// The segment that holds `address`.
    #[inline]
    pub fn find(&self, address: u64) -> Option<&Segment> {
        let after = self.firsts.partition_point(|&first| first <= address);
        self.segments
            .get(after.wrapping_sub(1))
            .filter(|segment| address <= segment.last)
    }
}

impl Segment {
    /// Reads from the device. `address` is in this segment.
    #[inline]
    pub fn read(&self, address: u64, data: &mut [u8]) -> Result<(), AccessError> {
        self.device.read(self.offset(address, data.len())?, data)
    }

    /// Writes to the device. `address` is in this segment.
    #[inline]
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), AccessError> {
        self.device.write(self.offset(address, data.len())?, data)
    }

    /// The offset in the region, if an access of `width` bytes can be made there.
    #[inline]
    fn offset(&self, address: u64, width: usize) -> Result<u64, AccessError> {
        let offset = address.wrapping_sub(self.base);
        if !matches!(width, 1 | 2 | 4 | 8) {
            return Err(AccessError::Width { offset, width });
        }
        if self.last.wrapping_sub(address) < width as u64 - 1 {
            return Err(AccessError::Straddle { offset, width });
        }
        Ok(offset)
    }
}
