use std::{collections::BTreeMap, ops::RangeInclusive};

use crate::dma::Leaf;

/// Where a range of a domain's addresses leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mapping {
    /// First address that devices use.
    pub first: u64,
    /// Last address that devices use.
    pub last: u64,
    /// What the first address translates to.
    pub physical: u64,
    /// Reads are allowed.
    pub read: bool,
    /// Writes are allowed.
    pub write: bool,
}

/// Mappings that do not overlap, by their first address.
#[derive(Debug, Default)]
pub(super) struct Mappings(BTreeMap<u64, Mapping>);

/// A range begins or ends within a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Split;

impl Mappings {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.0.values()
    }

    /// The mapping that holds `address`.
    pub fn at(&self, address: u64) -> Option<&Mapping> {
        let (_, mapping) = self.0.range(..=address).next_back()?;
        (address <= mapping.last).then_some(mapping)
    }

    /// Whether a mapping overlaps `range`.
    pub fn overlap(&self, range: &RangeInclusive<u64>) -> bool {
        let (_, last) = range.clone().into_inner();
        self.0
            .range(..=last)
            .next_back()
            .is_some_and(|(_, mapping)| mapping.last >= *range.start())
    }

    /// Adds a mapping that overlaps none.
    pub fn insert(&mut self, mapping: Mapping) {
        self.0.insert(mapping.first, mapping);
    }

    /// Removes every mapping in `range` and tells how many there were; none if that would split one.
    pub fn remove(&mut self, range: &RangeInclusive<u64>) -> Result<usize, Split> {
        let splits = |at: Option<&Mapping>| {
            at.is_some_and(|mapping| {
                !(range.contains(&mapping.first) && range.contains(&mapping.last))
            })
        };
        if splits(self.at(*range.start())) || splits(self.at(*range.end())) {
            return Err(Split);
        }
        let before = self.0.len();
        while let Some((&first, _)) = self.0.range(range.clone()).next() {
            self.0.remove(&first);
        }
        Ok(before - self.0.len())
    }

    /// The largest page around `address` that one mapping backs whole, of a size that page tables have too.
    pub fn leaf(&self, address: u64) -> Option<Leaf> {
        let mapping = self.at(address)?;
        let output = mapping
            .physical
            .checked_add(address.checked_sub(mapping.first)?)?;
        let shift = [30, 21, 12].into_iter().find(|shift| {
            let low = (1 << shift) - 1;
            let first = address & !low;
            (address ^ output) & low == 0 && mapping.first <= first && first | low <= mapping.last
        })?;
        Some(Leaf {
            output: output & !((1 << shift) - 1),
            shift,
            read: mapping.read,
            write: mapping.write,
        })
    }
}
