//! Which accesses the model needs to see. Everything else may go to the device without it.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::language::Access;
use crate::model::{Class, Model, Next, Register, Sharing};

/// What must be hooked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Hooks {
    /// Registers, by space, offset and direction.
    pub registers: Vec<Hook>,
    /// Bytes that the model does not know, which are denied.
    pub unknown: Vec<Unknown>,
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
    /// Of a register of one byte: which values matter, in some state. None: all.
    pub values: Option<Vec<u8>>,
    /// If that depends on the state: how many values matter in the state where the fewest do, and where the most do.
    pub by_state: Option<(usize, usize)>,
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
    /// The smallest set of accesses that can change what the model decides. An engine sees them if its model is
    /// [for](Self::for_sharing) so many guests.
    pub fn hooks(&self, sharing: Sharing) -> Hooks {
        let model = self.for_sharing(sharing);
        let mut registers: Vec<Hook> = Vec::new();
        for register in &model.registers {
            for access in [Access::Read, Access::Write] {
                let Some(mut hook) = model.hook(register, access) else {
                    continue;
                };
                let place = |hook: &Hook| (hook.space, hook.offset, hook.width, hook.writes);
                match registers.iter_mut().find(|one| place(one) == place(&hook)) {
                    Some(bank) => bank.add(&mut hook),
                    None => registers.push(hook),
                }
            }
        }
        registers.sort_by_key(|hook| (hook.space, hook.offset, hook.writes));
        Hooks {
            registers,
            unknown: self.unknown(),
        }
    }

    /// The same to be read: a line for each hook.
    pub fn hooks_text(&self, sharing: Sharing) -> String {
        let mut text = String::new();
        for hook in self.hooks(sharing).registers {
            let space = self.spaces.get(usize::from(hook.space));
            let space = space.map_or("?", |space| &space.name);
            let direction = if hook.writes { "write" } else { "read" };
            let of = |count: String| format!(", {count} of 256 values");
            let values = match (&hook.by_state, &hook.values) {
                (Some((fewest, most)), _) => of(format!("by state {fewest} to {most}")),
                (None, Some(values)) => of(values.len().to_string()),
                (None, None) => String::new(),
            };
            let (offset, width, names) = (hook.offset, hook.width, hook.names.join(" "));
            text += &format!("{direction:5} {space}[{offset:#x}]:{width} {names}{values}\n");
        }
        text
    }

    /// When the model has to see an access of a register. None: never.
    fn hook(&self, register: &Register, access: Access) -> Option<Hook> {
        let writes = access == Access::Write;
        let start = register.rule(access).filter(|at| !self.is_nothing(*at))?;
        let (mut values, mut by_state) = (None, None);
        if let Some(table) = self.table(register.by_state).filter(|_| writes) {
            let seen = |next| next != Next::Same;
            let states = table.states().map(|state| {
                let seen = state.filter(|(_, next)| seen(*next));
                seen.map(|(value, _)| value).collect::<Vec<u8>>()
            });
            let states: Vec<_> = states.collect();
            let counts = states.iter().map(Vec::len);
            by_state = counts.clone().min().zip(counts.max());
            values = Some(states.into_iter().flatten().collect::<BTreeSet<u8>>());
        } else if let Some(left) = register.by_value.filter(|_| writes)
            && let Some(left) = self.by_value.get(usize::from(left))
        {
            let start = |value: &u8| left.at((*value).into()).unwrap_or(start);
            let seen = (0..=u8::MAX).filter(|value| !self.is_nothing(start(value)));
            values = Some(seen.collect());
        }
        if values.as_ref().is_some_and(BTreeSet::is_empty) {
            return None;
        }
        let values = values.filter(|values| values.len() < 256);
        Some(Hook {
            space: register.space,
            offset: register.offset,
            width: register.width,
            writes,
            names: vec![register.name.clone()],
            values: values.map(|values| values.into_iter().collect()),
            by_state: by_state.filter(|(fewest, most)| fewest != most),
        })
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
}

impl Hook {
    /// Adds what is seen in another bank.
    fn add(&mut self, other: &mut Self) {
        self.names.append(&mut other.names);
        self.values = match (self.values.take(), other.values.take()) {
            (Some(one), Some(other)) => {
                let both: BTreeSet<u8> = one.into_iter().chain(other).collect();
                Some(both.into_iter().collect())
            }
            _ => None,
        };
        self.by_state = match (self.by_state, other.by_state) {
            (Some(one), Some(other)) => Some((one.0.min(other.0), one.1.max(other.1))),
            (one, other) => one.or(other),
        };
    }
}
