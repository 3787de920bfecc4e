//! What the declarations declare.

use super::{Compiler, Later, MAX_ENTRIES, MAX_ENTRY, MAX_HEAD, MAX_SPACE, Result, Scope, Symbol};
use crate::language::Diagnostic;
use crate::language::syntax::{Expr, Item, Name, Span, TableItem};
use crate::model::lookup::Lookup;
use crate::model::program::{Code, INDEX, Slot, VALUE};
use crate::model::{Field, Free, Machine, Register, Space, Table, Transfer, Variable};

/// Stands where the code is not compiled yet.
const LATER: Code = Code {
    start: u16::MAX,
    result: VALUE,
};

impl<'a> Compiler<'a> {
    pub(super) fn declare(&mut self, items: &'a [Item], scope: &Scope) -> Result<()> {
        for item in items {
            self.declare_one(item, scope)?;
        }
        Ok(())
    }

    fn declare_one(&mut self, item: &'a Item, scope: &Scope) -> Result<()> {
        match item {
            Item::Model(name) => self.model = Some(name.clone()),
            Item::Deny(policy) => self.out.policy = *policy,
            Item::Space { name, places, size } => {
                let index = index(self.out.spaces.len(), &name.span)?;
                self.name(name, scope, Symbol::Space(index))?;
                let place = |(kind, bar): &(_, Option<_>)| match bar {
                    Some(bar) => {
                        let bar = self.within(bar, scope, 0, 5)?;
                        Ok((*kind, u8::try_from(bar).ok()))
                    }
                    None => Ok((*kind, None)),
                };
                let places = places.iter().map(place).collect::<Result<_>>()?;
                self.out.spaces.push(Space {
                    name: name.word.clone(),
                    places,
                    size: self.within(size, scope, 1, MAX_SPACE)?,
                });
            }
            Item::Const(name, value) => {
                let value = self.number(value, scope)?;
                self.name(name, scope, Symbol::Const(value))?;
            }
            Item::Machine(name, states) => {
                let slot = self.slot(&name.span)?;
                let full = self.name(name, scope, Symbol::Machine(self.out.machines.len()))?;
                self.out.variables.push(Variable {
                    name: full.clone(),
                    slot,
                    bits: 16,
                    initial: 0,
                    address: false,
                });
                let states = states.iter().map(|state| state.word.clone()).collect();
                self.out.machines.push(Machine {
                    name: full,
                    states,
                    slot,
                });
            }
            Item::Variable {
                name,
                address,
                bits,
                initial,
            } => {
                let slot = self.slot(&name.span)?;
                let full = self.name(name, scope, Symbol::Variable(slot))?;
                let bits = u32::try_from(self.within(bits, scope, 1, 64)?).unwrap_or(64);
                let initial = match initial {
                    Some(initial) => self.within(initial, scope, 0, ones(bits))?,
                    None => 0,
                };
                self.out.variables.push(Variable {
                    name: full,
                    slot,
                    bits,
                    initial,
                    address: *address,
                });
            }
            Item::For(name, first, end, body) => {
                for value in self.range(first, end, scope)? {
                    self.declare(body, &scope.with(&name.word, value))?;
                }
            }
            Item::Register {
                name,
                space,
                offset,
                width,
                direction,
                when,
            } => {
                let register = self.declare_register(name, space, offset, width, scope)?;
                let index = u16::try_from(self.out.registers.len()).unwrap_or(u16::MAX);
                let full = self.name(name, scope, Symbol::Register(index))?;
                if let Some(when) = when {
                    self.later.push((scope.clone(), Later::When(index, when)));
                }
                self.out.registers.push(Register {
                    name: full,
                    direction: *direction,
                    ..register
                });
            }
            Item::Free {
                space,
                first,
                end,
                direction,
            } => {
                let space = self.space(space, scope)?;
                let size = self.size(space);
                let last = self.within(end, scope, 0, size)?;
                self.free.push(Free {
                    space,
                    first: self.within(first, scope, 0, last)?,
                    end: last,
                    direction: *direction,
                });
            }
            Item::Transfer {
                name,
                access,
                address,
                length,
                active,
            } => {
                let index = index(self.out.transfers.len(), &name.span)?;
                let full = self.name(name, scope, Symbol::Transfer(index))?;
                let codes = [address, length, active];
                self.later
                    .push((scope.clone(), Later::Transfer(index, codes)));
                self.out.transfers.push(Transfer {
                    name: full,
                    access: *access,
                    address: LATER,
                    length: LATER,
                    active: LATER,
                });
            }
            Item::Table {
                name,
                at,
                max,
                head,
                entry,
                body,
            } => {
                let number = index(self.out.tables.len(), &name.span)?;
                let full = self.name(name, scope, Symbol::Table(number))?;
                let entry = self.within(entry, scope, 1, MAX_ENTRY)?;
                let head = match head {
                    Some(head) => self.within(head, scope, 0, MAX_HEAD)?,
                    None => 0,
                };
                let table = Table {
                    name: full,
                    at: None,
                    max: self.within(max, scope, 1, MAX_ENTRIES)?,
                    head,
                    entry,
                    fields: self.declare_fields(body, entry, scope)?,
                    buffers: Vec::new(),
                    follow: None,
                    device: (0, 0),
                    during: None,
                    last: None,
                    wrap: None,
                    done: None,
                    shadow: self.slot(&name.span)?,
                    offset: 0,
                };
                let at = at.as_ref().map(|(base, count)| (base, count));
                self.later
                    .push((scope.clone(), Later::Table(number, at, body)));
                self.out.tables.push(table);
            }
            Item::On(trigger, body, span) => {
                self.later
                    .push((scope.clone(), Later::On(trigger, body, span)));
            }
            Item::Promise { expr, during, why } => {
                let promise = Later::Promise(expr, during.as_ref(), why);
                self.later.push((scope.clone(), promise));
            }
            Item::Reusable(expr) => self.later.push((scope.clone(), Later::Reusable(expr))),
            Item::Save(body) => self.later.push((scope.clone(), Later::Save(body))),
            Item::Restore(body) => self.later.push((scope.clone(), Later::Restore(body))),
        }
        Ok(())
    }

    fn declare_register(
        &mut self,
        name: &Name,
        space: &Name,
        offset: &Expr,
        width: &Expr,
        scope: &Scope,
    ) -> Result<Register> {
        let space = self.space(space, scope)?;
        let size = self.size(space);
        let bytes = self.within(width, scope, 1, 8)?;
        let offset = self.number(offset, scope)?;
        if !bytes.is_power_of_two() {
            return Err(Diagnostic::new(
                "accesses are 1, 2, 4 or 8 bytes wide",
                &width.span,
            ));
        }
        if !Lookup::new(size).accepts(offset, bytes) || self.out.registers.len() > 4096 {
            let message = format!("no register of {bytes} bytes fits at {offset:#x}");
            return Err(Diagnostic::new(message, &name.span));
        }
        Ok(Register {
            name: String::new(),
            space,
            offset,
            width: u8::try_from(bytes).unwrap_or(8),
            direction: None,
            when: None,
            on_read: None,
            on_write: None,
            by_value: None,
            by_state: None,
        })
    }

    fn declare_fields(
        &mut self,
        body: &[TableItem],
        entry: u64,
        scope: &Scope,
    ) -> Result<Vec<Field>> {
        let mut fields = Vec::new();
        for item in body {
            let TableItem::Field {
                name,
                address,
                offset,
                width,
            } = item
            else {
                continue;
            };
            let width = self.within(width, scope, 1, entry.min(8))?;
            fields.push(Field {
                name: name.word.clone(),
                slot: self.slot(&name.span)?,
                offset: self.within(offset, scope, 0, entry - width)?,
                width,
                address: *address,
            });
        }
        Ok(fields)
    }

    fn name(&mut self, name: &Name, scope: &Scope, symbol: Symbol) -> Result<String> {
        let full = self.full(name, scope)?;
        let reserved = ["value", "index"].contains(&full.as_str());
        if reserved || scope.find(&full).is_some() || self.symbols.contains_key(&full) {
            let message = format!("`{full}` is the name of something else already");
            return Err(Diagnostic::new(message, &name.span));
        }
        self.symbols.insert(full.clone(), symbol);
        Ok(full)
    }

    /// A slot that nobody has.
    pub(super) fn slot(&mut self, span: &Span) -> Result<Slot> {
        let slot = Slot::try_from(self.next)
            .ok()
            .filter(|_| self.next < self.lowest);
        self.next += 1;
        slot.ok_or_else(|| too_large(span))
    }

    fn space(&self, name: &Name, scope: &Scope) -> Result<u8> {
        match self.find(name, scope)? {
            Symbol::Space(index) => Ok(index),
            _ => Err(Diagnostic::new("this is no space", &name.span)),
        }
    }

    fn size(&self, space: u8) -> u64 {
        let space = self.out.spaces.get(usize::from(space));
        space.map_or(0, |space| space.size)
    }

    pub(super) fn reserved(word: &str) -> Option<Slot> {
        match word {
            "value" => Some(VALUE),
            "index" => Some(INDEX),
            _ => None,
        }
    }
}

fn index(length: usize, span: &Span) -> Result<u8> {
    u8::try_from(length).map_err(|_| too_large(span))
}

pub(super) fn too_large(span: &Span) -> Diagnostic {
    Diagnostic::new("the model is too large: it has more than 250 numbers", span)
}

/// That many bits, all set.
pub(super) fn ones(bits: u32) -> u64 {
    u64::MAX >> (64 - bits.clamp(1, 64))
}
