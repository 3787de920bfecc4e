//! From an offset to what the model says about an access there.

use std::collections::BTreeMap;
use std::ops::Range;

use super::program::Code;
use super::{Model, Register};
use crate::language::Access;

/// Spaces larger than this are looked up by 4 bytes.
const FINE: u64 = 4096;

/// What is known about a byte (or four of them) in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing: denied.
    Unknown,
    /// It changes nothing that matters: allowed. With how many there are in a row, from this one on, as far as that fits.
    Free(u16),
    /// Some of the registers in this list begin here.
    Ruled(u16),
    /// The rest of such a register.
    Inside,
}

/// What to do about an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'a> {
    Unknown,
    Free,
    /// The first of these registers whose width and bank fit.
    Ruled(&'a [Candidate]),
}

impl Found<'_> {
    /// Whether an access of this width changes nothing, in whatever state.
    #[inline]
    pub fn is_free(self, width: u8) -> bool {
        match self {
            Self::Unknown => false,
            Self::Free => true,
            Self::Ruled(list) => {
                let first = list.iter().find(|one| one.width == width);
                first.is_some_and(|one| one.rule.is_none() && one.when.is_none())
            }
        }
    }
}

/// What an access needs to know of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub width: u8,
    /// The bank.
    pub when: Option<Code>,
    /// None: it changes nothing.
    pub rule: Option<u16>,
    /// Of a register of one byte: which of [`Model::by_value`](super::Model::by_value) is the rule for each value.
    pub by_value: Option<u16>,
    /// The same of [`Model::by_state`](super::Model::by_state).
    pub by_state: Option<u16>,
}

#[derive(Clone, Debug)]
pub struct Lookup {
    shift: u32,
    size: u64,
    reads: Vec<Class>,
    writes: Vec<Class>,
    lists: Vec<Vec<Candidate>>,
}

impl Lookup {
    /// Of each space of a model.
    pub fn all(model: &Model) -> Vec<Self> {
        let spaces = model.spaces.iter();
        let mut lookups: Vec<Self> = spaces.map(|space| Self::new(space.size)).collect();
        for access in [Access::Read, Access::Write] {
            let accepts = |only: Option<Access>| only.is_none_or(|only| only == access);
            for free in model.free.iter().filter(|free| accepts(free.direction)) {
                if let Some(lookup) = lookups.get_mut(usize::from(free.space)) {
                    lookup.free(access, free.first, free.end);
                }
            }
            let mut groups: BTreeMap<(u8, u64), Vec<&Register>> = BTreeMap::new();
            for register in &model.registers {
                if accepts(register.direction) {
                    let group = groups.entry((register.space, register.offset));
                    group.or_default().push(register);
                }
            }
            for ((space, _), group) in groups {
                if let Some(lookup) = lookups.get_mut(usize::from(space)) {
                    lookup.registers(access, &group, model);
                }
            }
        }
        lookups.iter_mut().for_each(Self::finish);
        lookups
    }

    pub fn new(size: u64) -> Self {
        let shift = if size > FINE { 2 } else { 0 };
        let places = usize::try_from(size.div_ceil(1 << shift)).unwrap_or(0);
        Self {
            shift,
            size,
            reads: vec![Class::Unknown; places],
            writes: vec![Class::Unknown; places],
            lists: Vec::new(),
        }
    }

    /// Whether registers may begin at `offset` and be `width` bytes wide.
    pub fn accepts(&self, offset: u64, width: u64) -> bool {
        let aligned = (offset | width).is_multiple_of(1 << self.shift);
        aligned
            && offset
                .checked_add(width)
                .is_some_and(|end| end <= self.size)
    }

    fn classes(&self, access: Access) -> &[Class] {
        match access {
            Access::Read => &self.reads,
            Access::Write => &self.writes,
        }
    }

    fn places(&mut self, access: Access, first: u64, end: u64) -> impl Iterator<Item = &mut Class> {
        let classes = match access {
            Access::Read => &mut self.reads,
            Access::Write => &mut self.writes,
        };
        let first = usize::try_from(first >> self.shift).unwrap_or(usize::MAX);
        let end = usize::try_from(end.div_ceil(1 << self.shift)).unwrap_or(usize::MAX);
        let count = end.saturating_sub(first);
        classes.iter_mut().skip(first).take(count)
    }

    fn free(&mut self, access: Access, first: u64, end: u64) {
        for class in self.places(access, first, end) {
            *class = Class::Free(1);
        }
    }

    /// To be called when everything was added.
    fn finish(&mut self) {
        for classes in [&mut self.reads, &mut self.writes] {
            let mut row = 0_u16;
            for class in classes.iter_mut().rev() {
                row = match class {
                    Class::Free(_) => row.saturating_add(1),
                    _ => 0,
                };
                if let Class::Free(free) = class {
                    *free = row;
                }
            }
        }
    }

    /// Adds the registers that begin at one offset, in the order in which they are tried. They cover what was free.
    fn registers(&mut self, access: Access, list: &[&Register], model: &Model) {
        let list = list.iter();
        let Some(first) = list.clone().map(|register| register.offset).next() else {
            return;
        };
        let width = list.clone().map(|register| u64::from(register.width)).max();
        let ruled = list.clone().any(|register| register.rule(access).is_some());
        let end = first.saturating_add(width.unwrap_or(0));
        let Ok(number) = u16::try_from(self.lists.len()) else {
            return;
        };
        for (class, i) in self.places(access, first, end).zip(0..) {
            *class = match (ruled, i) {
                (false, _) if matches!(*class, Class::Unknown | Class::Free(_)) => Class::Free(1),
                (false, _) => *class,
                (true, 0) => Class::Ruled(number),
                (true, _) if matches!(*class, Class::Ruled(_)) => *class,
                (true, _) => Class::Inside,
            };
        }
        if ruled {
            let written = access == Access::Write;
            let candidate = |register: &&Register| Candidate {
                width: register.width,
                when: register.when,
                rule: register.rule(access).filter(|at| !model.is_nothing(*at)),
                by_value: register.by_value.filter(|_| written),
                by_state: register.by_state.filter(|_| written),
            };
            self.lists.push(list.map(candidate).collect());
        }
    }

    #[inline]
    pub fn find(&self, access: Access, offset: u64, width: u64) -> Found<'_> {
        let classes = self.classes(access);
        let at = usize::try_from(offset >> self.shift).unwrap_or(usize::MAX);
        let Some(&class) = classes.get(at) else {
            return Found::Unknown;
        };
        match class {
            Class::Ruled(list) if offset.is_multiple_of(1 << self.shift) => {
                match self.lists.get(usize::from(list)) {
                    Some(list) => Found::Ruled(list),
                    None => Found::Unknown,
                }
            }
            Class::Free(row)
                if self.places_of(offset, width) <= row.into() && offset + width <= self.size =>
            {
                Found::Free
            }
            _ => Found::Unknown,
        }
    }

    /// How many places an access covers, which begins in one.
    #[inline]
    fn places_of(&self, offset: u64, width: u64) -> u64 {
        let within = offset & !(u64::MAX << self.shift);
        (within + width + !(u64::MAX << self.shift)) >> self.shift
    }

    /// Bytes that are free both ways, in ranges that no access both begins and ends outside of, unless it is not aligned.
    pub fn free_ranges(&self) -> Vec<Range<u64>> {
        let free = |offset: u64, both: bool| {
            let at = usize::try_from(offset >> self.shift).unwrap_or(usize::MAX);
            let free = |classes: &[Class]| matches!(classes.get(at), Some(Class::Free(_)));
            let [reads, writes] = [&self.reads, &self.writes].map(|classes| free(classes));
            if both {
                reads && writes
            } else {
                reads || writes
            }
        };
        let mut ranges = Vec::new();
        let mut next = 0;
        while let Some(first) = (next..self.size).find(|offset| free(*offset, true)) {
            let end = (first..self.size).find(|offset| !free(*offset, true));
            let end = end.unwrap_or(self.size);
            next = end;
            let before = first.checked_sub(1).is_some_and(|byte| free(byte, false));
            let first = if before {
                first.next_multiple_of(8)
            } else {
                first
            };
            let behind = end < self.size && free(end, false);
            let end = if behind { end & !7 } else { end };
            if first < end {
                ranges.push(first..end);
            }
        }
        ranges
    }

    /// The class of each byte, of its reads and of its writes.
    pub fn bytes(&self) -> impl Iterator<Item = (u64, Class, Class)> + '_ {
        (0..self.size).map(|offset| {
            let at = usize::try_from(offset >> self.shift).unwrap_or(usize::MAX);
            let class = |classes: &[Class]| classes.get(at).copied().unwrap_or(Class::Unknown);
            (offset, class(&self.reads), class(&self.writes))
        })
    }
}
