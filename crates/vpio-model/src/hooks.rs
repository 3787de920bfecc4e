//! Which accesses the model needs to see. Everything else may go to the device without it.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::engine::At;
use crate::language::Access;
use crate::model::program::{Op, Slot, VALUE, binary, unary};
use crate::model::{Class, Model, Sharing};

/// What must be hooked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hooks {
    /// Registers, by space, offset and direction.
    pub registers: Vec<Hook>,
    /// Bytes that the model does not know, which are denied.
    pub unknown: Vec<Unknown>,
}

impl Hooks {
    /// Whether an access, of a write with its value, is hooked.
    pub fn contains(&self, access: Access, at: At, value: u64) -> bool {
        let writes = access == Access::Write;
        let place = |hook: &Hook| (hook.space, hook.offset, hook.writes);
        let wanted = (at.space, at.offset, writes);
        let first = self.registers.partition_point(|hook| place(hook) < wanted);
        let here = self.registers.iter().skip(first);
        let mut here = here.take_while(|hook| place(hook) == wanted);
        here.any(|hook| {
            let matters = |values: &Vec<u8>| values.iter().any(|known| u64::from(*known) == value);
            hook.width == at.width && hook.values.as_ref().is_none_or(matters)
        })
    }
}

/// A register whose accesses drive the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hook {
    /// Number of the space.
    pub space: u8,
    /// Offset in the space, in bytes.
    pub offset: u64,
    /// Bytes.
    pub width: u8,
    /// Whether writes are hooked, rather than reads.
    pub writes: bool,
    /// The registers that are there, one for each bank.
    pub names: Vec<String>,
    /// Of a register of one byte: which values matter. None: all.
    pub values: Option<Vec<u8>>,
}

/// Bytes that are denied in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unknown {
    /// Number of the space.
    pub space: u8,
    /// The first byte.
    pub first: u64,
    /// The byte after the last.
    pub end: u64,
    /// Whether writes are denied, rather than reads.
    pub writes: bool,
}

/// How a page of memory-mapped registers may be given to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum PageAccess {
    /// Mapped: nothing in it is hooked.
    Direct,
    /// Mapped for reading: no read of it is hooked.
    ReadOnly,
    /// Not mapped.
    Trapped,
}

impl Model {
    /// The smallest set of accesses that can change what the model decides.
    pub fn hooks(&self, sharing: Sharing) -> Hooks {
        let live = self.live(sharing);
        let mut registers: Vec<Hook> = Vec::new();
        for register in &self.registers {
            for access in [Access::Read, Access::Write] {
                let Some(start) = register.rule(access) else {
                    continue;
                };
                let values = (register.width == 1 && access == Access::Write)
                    .then(|| self.effective_values(start, &live));
                let silent = match &values {
                    Some(values) => values.is_empty(),
                    None => !self.may_matter(start, None, &live),
                };
                if silent {
                    continue;
                }
                let all = values.as_ref().is_some_and(|values| values.len() == 256);
                let values = values.filter(|_| !all);
                let writes = access == Access::Write;
                let same = |hook: &&mut Hook| {
                    (hook.space, hook.offset) == (register.space, register.offset)
                        && (hook.width, hook.writes) == (register.width, writes)
                };
                if let Some(hook) = registers.iter_mut().find(same) {
                    hook.names.push(register.name.clone());
                    hook.values = match (hook.values.take(), values) {
                        (Some(one), Some(other)) => {
                            let both: BTreeSet<u8> = one.into_iter().chain(other).collect();
                            Some(both.into_iter().collect())
                        }
                        _ => None,
                    };
                } else {
                    registers.push(Hook {
                        space: register.space,
                        offset: register.offset,
                        width: register.width,
                        writes,
                        names: vec![register.name.clone()],
                        values,
                    });
                }
            }
        }
        registers.sort_by_key(|hook| (hook.space, hook.offset, hook.writes));
        Hooks {
            registers,
            unknown: self.unknown(),
        }
    }

    /// How each page of 4096 bytes of a space may be mapped.
    pub fn pages(&self, space: u8, sharing: Sharing) -> Vec<PageAccess> {
        let hooks = self.hooks(sharing);
        let size = self.spaces.get(usize::from(space)).map_or(0, |s| s.size);
        let touched = |page: u64, writes: bool| {
            let within = |first: u64, end: u64| first < (page + 1) * 4096 && page * 4096 < end;
            let register = hooks.registers.iter().any(|hook| {
                let end = hook.offset + u64::from(hook.width);
                (hook.space, hook.writes) == (space, writes) && within(hook.offset, end)
            });
            let unknown = hooks.unknown.iter().any(|range| {
                (range.space, range.writes) == (space, writes) && within(range.first, range.end)
            });
            register || unknown
        };
        let pages = 0..size.div_ceil(4096);
        pages
            .map(|page| match (touched(page, false), touched(page, true)) {
                (false, false) => PageAccess::Direct,
                (false, true) => PageAccess::ReadOnly,
                (true, _) => PageAccess::Trapped,
            })
            .collect()
    }

    fn unknown(&self) -> Vec<Unknown> {
        let mut unknown: Vec<Unknown> = Vec::new();
        for (lookup, space) in self.lookups.iter().zip(0..) {
            for writes in [false, true] {
                for (offset, reads, written) in lookup.bytes() {
                    let class = if writes { written } else { reads };
                    if class != Class::Unknown {
                        continue;
                    }
                    match unknown.last_mut() {
                        Some(last)
                            if (last.space, last.writes, last.end) == (space, writes, offset) =>
                        {
                            last.end += 1;
                        }
                        _ => unknown.push(Unknown {
                            space,
                            first: offset,
                            end: offset + 1,
                            writes,
                        }),
                    }
                }
            }
        }
        unknown
    }

    fn effective_values(&self, start: u16, live: &BTreeSet<Slot>) -> Vec<u8> {
        let values = 0..=u8::MAX;
        values
            .filter(|value| self.may_matter(start, Some((*value).into()), live))
            .collect()
    }

    /// Whether a rule can do anything that matters, for a value, or for some.
    pub(crate) fn may_matter(&self, start: u16, value: Option<u64>, live: &BTreeSet<Slot>) -> bool {
        let mut known = [None; 256];
        for &(slot, constant) in &self.constants {
            if let Some(place) = known.get_mut(usize::from(slot)) {
                *place = Some(constant);
            }
        }
        if let Some(place) = known.get_mut(usize::from(VALUE)) {
            *place = value;
        }
        let mut paths = MAX_PATHS;
        self.path_matters(usize::from(start), known, live, &mut paths)
    }

    /// Follows a rule, both ways where it is not known which way it goes.
    fn path_matters(
        &self,
        mut at: usize,
        mut known: [Option<u64>; 256],
        live: &BTreeSet<Slot>,
        paths: &mut u32,
    ) -> bool {
        *paths = paths.saturating_sub(1);
        if *paths == 0 {
            return true;
        }
        let get = |known: &[Option<u64>; 256], slot: Slot| {
            known.get(usize::from(slot)).copied().flatten()
        };
        loop {
            let Some(&op) = self.ops.get(at) else {
                return false;
            };
            at += 1;
            let (written, jump) = match op {
                Op::End => return false,
                Op::Set { to, .. } if live.contains(&to) => return true,
                Op::Set { to, .. } | Op::Peek { to, .. } | Op::Device { to, .. } => {
                    (Some((to, None)), None)
                }
                Op::Copy { to, from } => (Some((to, get(&known, from))), None),
                Op::Unary { operator, to, from } => {
                    let value = get(&known, from).map(|from| unary(operator, from));
                    (Some((to, value)), None)
                }
                Op::Binary {
                    operator,
                    to,
                    left,
                    right,
                } => {
                    let both = get(&known, left).zip(get(&known, right));
                    let value = both.map(|(left, right)| binary(operator, left, right));
                    (Some((to, value)), None)
                }
                Op::Jump(to) => (None, Some((Some(true), to))),
                Op::JumpIfZero { slot, to } => {
                    (None, Some((get(&known, slot).map(|value| value == 0), to)))
                }
                Op::JumpUnlessAny { slot, mask, to } => {
                    let both = get(&known, slot).zip(get(&known, mask));
                    (None, Some((both.map(|(slot, mask)| slot & mask == 0), to)))
                }
                Op::JumpUnlessEqual { left, right, to } => {
                    let both = get(&known, left).zip(get(&known, right));
                    (None, Some((both.map(|(left, right)| left != right), to)))
                }
                Op::Require { slot, .. } if get(&known, slot).is_none_or(|value| value == 0) => {
                    return true;
                }
                Op::Require { .. } => (None, None),
                Op::Check { .. }
                | Op::Fetch { .. }
                | Op::Put { .. }
                | Op::Forward(_)
                | Op::Reset => return true,
            };
            if let Some((to, value)) = written
                && let Some(place) = known.get_mut(usize::from(to))
            {
                *place = value;
            }
            match jump {
                Some((Some(true), to)) => at = usize::from(to),
                Some((None, to)) if self.path_matters(usize::from(to), known, live, paths) => {
                    return true;
                }
                _ => {}
            }
        }
    }
}

/// How many ways through a rule are followed before it counts as one that matters.
const MAX_PATHS: u32 = 64;
