//! From an address to the one range that can hold it, in a few steps whatever the number of ranges.
//!
//! A tree of nodes. A node divides a span of addresses into buckets of equal size, about two for each range, so that a
//! step is a subtraction, a shift and a load. A bucket that several ranges touch is divided further, by a node of its
//! own over just the addresses where they are: clusters far apart, such as device memory below 4 GiB and far above it,
//! cost one step more, and no layout more than sixteen.

/// The tree.
pub struct Index {
    root: Node,
    nodes: Vec<Node>,
}

/// A span of addresses and how it is divided.
#[derive(Default)]
struct Node {
    /// First address.
    base: u64,
    /// Logarithm of the size of a bucket.
    shift: u32,
    buckets: Box<[Bucket]>,
}

/// What there is in a part of the addresses. Numbers are 32 bits wide to keep the tree in the cache.
#[derive(Clone, Copy)]
enum Bucket {
    Empty,
    /// This range and no other.
    Range(u32),
    /// Several: look in this node.
    Node(u32),
}

/// The least number of buckets a node is made for: four address bits a step.
const FEWEST: u64 = 16;

impl Index {
    /// Indexes ranges (first and last address) that are ascending and do not overlap.
    pub fn build(ranges: &[(u64, u64)]) -> Self {
        let mut index = Self {
            root: Node::default(),
            nodes: Vec::new(),
        };
        if let (Some((first, _)), Some((_, last))) = (ranges.first(), ranges.last()) {
            index.root = index.divide(ranges, 0, *first, *last);
        }
        index
    }

    /// The number of the only range that can hold `address`. Whether it does, the caller has to see.
    #[inline]
    pub fn find(&self, address: u64) -> Option<usize> {
        match self.root.bucket(address)? {
            Bucket::Empty => None,
            Bucket::Range(number) => Some(number as usize),
            Bucket::Node(number) => self.descend(number, address),
        }
    }

    /// Goes on from another node than the root.
    fn descend(&self, mut number: u32, address: u64) -> Option<usize> {
        loop {
            match self.nodes.get(number as usize)?.bucket(address)? {
                Bucket::Empty => return None,
                Bucket::Range(number) => return Some(number as usize),
                Bucket::Node(next) => number = next,
            }
        }
    }

    /// Divides `first..=last`. `ranges` are those that have addresses there, and `number` is that of the first of them.
    fn divide(
        &mut self,
        mut ranges: &[(u64, u64)],
        mut number: usize,
        first: u64,
        last: u64,
    ) -> Node {
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
            let before = ranges.partition_point(|(_, last)| *last < begin);
            number += before;
            ranges = ranges.get(before..).unwrap_or_default();
            let here = ranges.partition_point(|(first, _)| *first <= end);
            buckets.push(match ranges.get(..here) {
                Some([_]) => u32::try_from(number).map_or(Bucket::Empty, Bucket::Range),
                Some(several @ [(low, _), .., (_, high)]) => {
                    let node = self.divide(several, number, begin.max(*low), end.min(*high));
                    let number = u32::try_from(self.nodes.len());
                    self.nodes.push(node);
                    number.map_or(Bucket::Empty, Bucket::Node)
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

impl Node {
    #[inline]
    fn bucket(&self, address: u64) -> Option<Bucket> {
        // An address before ours wraps to a bucket that does not exist, or to one whose range does not hold it.
        let bucket = address.wrapping_sub(self.base) >> self.shift;
        self.buckets.get(usize::try_from(bucket).ok()?).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Index;

    fn found(ranges: &[(u64, u64)], index: &Index, address: u64) -> Option<usize> {
        index
            .find(address)
            .filter(|&number| (ranges[number].0..=ranges[number].1).contains(&address))
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
            let index = Index::build(&ranges);
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
            let index = Index::build(&ranges);
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
        let index = Index::build(&ranges);
        let buckets: usize = index.nodes.iter().map(|node| node.buckets.len()).sum();
        assert!(buckets < ranges.len() * 16 * 17, "{buckets}");
    }
}
