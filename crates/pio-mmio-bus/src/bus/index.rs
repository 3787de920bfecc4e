//! From an address to the one range that can hold it, in a few steps whatever the number of ranges.
//!
//! A tree of nodes. A node divides a span of addresses into buckets of equal size, about two for each range, so that a
//! step is a subtraction, a shift and a load. A bucket that several ranges touch is divided further, by a node of its
//! own over just the addresses where they are: clusters far apart, such as device memory below 4 GiB and far above it,
//! cost one step more, and no layout more than sixteen.

/// The tree.
pub struct Index<T> {
    root: Node<T>,
    nodes: Vec<Node<T>>,
}

/// A range of addresses, both ends inclusive, and what is there.
pub struct Range<T> {
    pub first: u64,
    pub last: u64,
    pub value: T,
}

/// A span of addresses and how it is divided.
struct Node<T> {
    /// First address.
    base: u64,
    /// Logarithm of the size of a bucket.
    shift: u32,
    buckets: Box<[Bucket<T>]>,
}

/// What there is in a part of the addresses.
#[repr(align(64))]
enum Bucket<T> {
    Empty,
    /// This and no other. In place, and not a reference: a look-up waits for each load that leads to the next.
    One(T),
    /// Several ranges: look in the node of this number.
    Several(usize),
}

/// The least number of buckets a node is made for: four address bits a step.
const FEWEST: u64 = 16;

impl<T: Clone> Index<T> {
    /// Indexes ranges that are ascending and do not overlap.
    pub fn build(ranges: &[Range<T>]) -> Self {
        let mut index = Self {
            root: Node {
                base: 0,
                shift: 0,
                buckets: Box::default(),
            },
            nodes: Vec::new(),
        };
        if let (Some(low), Some(high)) = (ranges.first(), ranges.last()) {
            index.root = index.divide(ranges, low.first, high.last);
        }
        index
    }

    /// What is in the only range that can hold `address`. Whether it does, the caller has to see.
    #[inline]
    pub fn find(&self, address: u64) -> Option<&T> {
        match self.root.bucket(address)? {
            Bucket::Empty => None,
            Bucket::One(value) => Some(value),
            Bucket::Several(number) => self.descend(*number, address),
        }
    }

    /// Goes on from another node than the root.
    fn descend(&self, mut number: usize, address: u64) -> Option<&T> {
        loop {
            match self.nodes.get(number)?.bucket(address)? {
                Bucket::Empty => return None,
                Bucket::One(value) => return Some(value),
                Bucket::Several(next) => number = *next,
            }
        }
    }

    /// Divides `first..=last`. `ranges` are those that have addresses there.
    fn divide(&mut self, mut ranges: &[Range<T>], first: u64, last: u64) -> Node<T> {
        let wanted = (ranges.len() as u64)
            .saturating_mul(2)
            .max(FEWEST)
            .next_power_of_two();
        let span = last - first;
        let shift = (u64::BITS - span.leading_zeros()).saturating_sub(wanted.ilog2());
        let mut buckets = Vec::new();
        for bucket in 0..=span >> shift {
            let begin = first + (bucket << shift);
            let end = begin.saturating_add((1 << shift) - 1).min(last);
            let before = ranges.partition_point(|range| range.last < begin);
            ranges = ranges.get(before..).unwrap_or_default();
            let here = ranges.partition_point(|range| range.first <= end);
            buckets.push(match ranges.get(..here) {
                Some([one]) => Bucket::One(one.value.clone()),
                Some(several @ [low, .., high]) => {
                    let node = self.divide(several, begin.max(low.first), end.min(high.last));
                    self.nodes.push(node);
                    Bucket::Several(self.nodes.len() - 1)
                }
                _ => Bucket::Empty,
            });
        }
        Node {
            base: first,
            shift,
            buckets: buckets.into(),
        }
    }
}

impl<T> Node<T> {
    #[inline]
    fn bucket(&self, address: u64) -> Option<&Bucket<T>> {
        // An address before ours wraps to a bucket that does not exist, or to one whose range does not hold it.
        let bucket = address.wrapping_sub(self.base) >> self.shift;
        self.buckets.get(usize::try_from(bucket).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Index, Range};

    fn build(ranges: &[(u64, u64)]) -> Index<usize> {
        let ranges = ranges.iter().enumerate();
        let ranges = ranges.map(|(value, &(first, last))| Range { first, last, value });
        Index::build(&ranges.collect::<Vec<_>>())
    }

    fn found(ranges: &[(u64, u64)], index: &Index<usize>, address: u64) -> Option<usize> {
        let holds = |number: &usize| (ranges[*number].0..=ranges[*number].1).contains(&address);
        index.find(address).copied().filter(holds)
    }

    fn holds(ranges: &[(u64, u64)], address: u64) -> Option<usize> {
        ranges
            .iter()
            .position(|(first, last)| (*first..=*last).contains(&address))
    }

    /// Disjoint ranges at all scales, many of them touching.
    fn ranges() -> impl Strategy<Value = Vec<(u64, u64)>> {
        let step = (0_u32..62, any::<u64>(), any::<bool>());
        prop::collection::vec(step, 0..60).prop_map(|steps| {
            let mut cuts: Vec<(u64, bool)> = steps
                .into_iter()
                .scan(0_u64, |at, (bits, random, taken)| {
                    *at = at.checked_add(1 + (random & ((1 << bits) - 1)))?;
                    Some((*at, taken))
                })
                .collect();
            cuts.push((u64::MAX, true));
            let ranges = cuts.windows(2).filter(|pair| pair[0].1);
            ranges
                .map(|pair| (pair[0].0, pair[1].0.saturating_sub(1).max(pair[0].0)))
                .collect()
        })
    }

    proptest! {
        #[test]
        fn finds_what_a_scan_finds(ranges in ranges(), more in prop::collection::vec(any::<u64>(), 20)) {
            let index = build(&ranges);
            let ends = ranges.iter().flat_map(|(first, last)| {
                [first.wrapping_sub(1), *first, first + (last - first) / 2, *last, last.wrapping_add(1)]
            });
            for address in ends.chain(more).chain([0, u64::MAX]) {
                prop_assert_eq!(found(&ranges, &index, address), holds(&ranges, address));
            }
        }
    }

    #[test]
    fn the_whole_space_and_its_ends_can_be_indexed() {
        for ranges in [
            vec![],
            vec![(0, u64::MAX)],
            vec![(0, 0), (u64::MAX, u64::MAX)],
            vec![(0, u64::MAX - 1), (u64::MAX, u64::MAX)],
            (0..300).map(|port| (port, port)).collect(),
        ] {
            let index = build(&ranges);
            for address in [0, 1, 299, 300, 1 << 63, u64::MAX - 1, u64::MAX] {
                assert_eq!(found(&ranges, &index, address), holds(&ranges, address));
            }
        }
    }

    #[test]
    fn a_hostile_layout_stays_small() {
        // Pairs that touch at an odd address, as far apart as they can be: each needs a path of its own.
        let ranges: Vec<_> = (1..512_u64)
            .flat_map(|pair| {
                [
                    ((pair << 54) + 1, (pair << 54) + 0x1234_5676),
                    ((pair << 54) + 0x1234_5677, (pair << 54) + (1 << 53)),
                ]
            })
            .collect();
        let index = build(&ranges);
        let buckets: usize = index.nodes.iter().map(|node| node.buckets.len()).sum();
        assert!(buckets < ranges.len() * 16 * 17, "{buckets}");
    }
}
