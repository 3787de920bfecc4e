//! What the rule of a register of one byte makes of a few bits of state, for each state and value: most of what a guest writes there
//! changes nothing in the state that the device is in.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Model;
use super::by_value::ByValue;
use super::program::{Frame, Host, Op, Slot, VALUE, Which};
use crate::language::Access;

/// A state has no more bits than this.
const MOST_BITS: u32 = 10;
/// How many ops may be carried out to make a model's tables.
const MOST_WORK: usize = 1 << 22;
/// Stands for a rule that has to be carried out: no state has this number.
const RULE: u16 = u16::MAX;

/// The few bits of state that tables are about, as one number.
#[derive(Clone, Debug, Default)]
pub struct Key {
    parts: Vec<Part>,
    bits: u32,
}

/// A variable's place in the number of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Part {
    slot: Slot,
    shift: u32,
    mask: u64,
}

impl Key {
    /// Adds what a rule looks at and sets. None if that is nothing, no variables, or too many bits.
    pub fn with_rule(&self, model: &Model, start: u16) -> Option<Self> {
        let constants = model.constants.iter().map(|(slot, _)| *slot);
        let mut known: BTreeSet<Slot> = constants.chain([VALUE]).collect();
        let mut key = self.clone();
        let mut stateless = true;
        for op in model.rule_ops(start) {
            let set = match op {
                Op::Set { to, .. } => Some(*to),
                _ => None,
            };
            for slot in op.reads().chain(set) {
                if known.insert(slot) {
                    key.add(model, slot)?;
                    stateless = false;
                }
            }
            known.extend(op.computes());
        }
        (!stateless).then_some(key)
    }

    fn add(&mut self, model: &Model, slot: Slot) -> Option<()> {
        let bits = model.bits(slot)?;
        if self.parts.iter().all(|part| part.slot != slot) {
            self.parts.push(Part {
                slot,
                shift: self.bits,
                mask: u64::MAX.checked_shr(64 - bits).unwrap_or(0),
            });
            self.bits += bits;
        }
        (self.bits <= MOST_BITS).then_some(())
    }

    /// How many bits a state has.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// The number of the state.
    #[inline]
    pub fn state(&self, frame: &Frame) -> u16 {
        let mut state = 0;
        for part in &self.parts {
            state |= frame.get(part.slot) << part.shift;
        }
        u16::try_from(state).unwrap_or(RULE)
    }

    /// Sets the variables.
    #[inline]
    pub fn enter(&self, state: u16, frame: &mut Frame) {
        for part in &self.parts {
            frame.set(part.slot, u64::from(state) >> part.shift & part.mask);
        }
    }
}

/// The next state for each state and value.
#[derive(Clone, Debug)]
pub struct ByState {
    /// By state, and in each by value.
    next: Arc<[u16]>,
}

/// What a write comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It changes nothing.
    Same,
    /// The variables change, and nothing else.
    State(u16),
    /// The rule says.
    Rule,
}

impl Next {
    #[inline]
    fn of(next: u16, state: u16) -> Self {
        match next {
            RULE => Self::Rule,
            next if next == state => Self::Same,
            next => Self::State(next),
        }
    }
}

impl ByState {
    /// The table of a rule that is about the variables of `key`, unless it would take too much `work`, or is of no use.
    pub fn of(
        model: &Model,
        key: &Key,
        start: u16,
        by_value: Option<&ByValue>,
        work: &mut usize,
    ) -> Option<Self> {
        let start = |value| by_value.and_then(|table| table.at(value)).unwrap_or(start);
        let lengths = (0..=255).map(|value| model.rule_ops(start(value)).count() + 1);
        let total = work.saturating_add(lengths.sum::<usize>() << key.bits);
        if total > MOST_WORK {
            return None;
        }
        *work = total;
        let mut frame = Frame::new(model);
        let mut next = Vec::with_capacity(256 << key.bits);
        for state in 0..1 << key.bits {
            for value in 0..=255 {
                key.enter(state, &mut frame);
                frame.begin(value);
                let mut world = Outside(false);
                let denied = model.run(start(value), &mut frame, &mut world).is_err();
                let more = world.0 || frame.forward.is_some() || frame.reset;
                next.push(if denied || more {
                    RULE
                } else {
                    key.state(&frame)
                });
            }
        }
        let useful = next.iter().any(|next| *next != RULE);
        useful.then(|| Self { next: next.into() })
    }

    /// What comes of a value.
    #[inline]
    pub fn next(&self, state: u16, value: u64) -> Next {
        // A value of more than a byte is none of this register.
        let row = u64::from(state) << 8;
        let at = if value < 256 { row | value } else { u64::MAX };
        let next = usize::try_from(at).ok().and_then(|at| self.next.get(at));
        next.map_or(Next::Rule, |next| Next::of(*next, state))
    }

    /// For each state, what comes of each value.
    pub fn states(&self) -> impl Iterator<Item = impl Iterator<Item = (u8, Next)>> {
        let rows = self.next.chunks_exact(256).zip(0..);
        rows.map(|(row, state)| {
            let values = row.iter().zip(0..=u8::MAX);
            values.map(move |(next, value)| (value, Next::of(*next, state)))
        })
    }
}

/// Whether a rule does more than to look at numbers and set them.
struct Outside(bool);

impl Host for Outside {
    fn translate(&mut self, _address: u64, _length: u64, _access: Access) -> Option<u64> {
        self.0 = true;
        None
    }

    fn peek(&mut self, _register: u16) -> u64 {
        self.0 = true;
        0
    }

    fn put(&mut self, _register: u16, _value: u64) {
        self.0 = true;
    }

    fn approve(&mut self, _transfer: u8, _address: u64, _length: u64) {
        self.0 = true;
    }

    fn fetch(
        &mut self,
        _model: &Model,
        _frame: &mut Frame,
        _table: u8,
        _which: Which,
        _from: u64,
        _to: u64,
    ) -> Option<u64> {
        self.0 = true;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Sharing;
    use crate::models;

    /// A table says what its rule does, for each state and value.
    #[test]
    fn tables_and_rules_agree() {
        let mut found = 0;
        for (path, text) in models::ALL {
            let whole = Model::parse(path, text).unwrap();
            for sharing in [Sharing::Exclusive, Sharing::Shared] {
                let model = whole.for_sharing(sharing);
                for register in &model.registers {
                    let Some(table) = model.table(register.by_state) else {
                        continue;
                    };
                    found += 1;
                    // As it is written, where what is left for one guest has its tables.
                    let start = register.on_write.unwrap();
                    for (state, row) in (0..).zip(table.states()) {
                        for (value, next) in row {
                            let mut frame = Frame::new(&whole);
                            model.key.enter(state, &mut frame);
                            frame.begin(value.into());
                            let mut world = Outside(false);
                            let result = whole.run(start, &mut frame, &mut world);
                            let only_sets = result.is_ok()
                                && !world.0
                                && frame.forward.is_none()
                                && !frame.reset;
                            let after = model.key.state(&frame);
                            let expected = match after {
                                _ if !only_sets => Next::Rule,
                                after if after == state => Next::Same,
                                after => Next::State(after),
                            };
                            let name = &register.name;
                            assert_eq!(next, expected, "{path} {name}: {state:#x} {value:#x}");
                        }
                    }
                }
            }
        }
        assert!(found > 2, "{found}");
    }

    /// A rule about what its model does not know beforehand has no table.
    #[test]
    fn more_than_a_few_bits_have_none() {
        let model = |rest: &str| {
            let text = format!(
                "model \"bits\"; space regs: port size 16; var a: 8; var b: 4; address x: 32;
                register A = regs[0]:1; register B = regs[4]:4; {rest} reusable when a == 1 && b == 1;"
            );
            Model::parse("bits.vpio", &text)
                .unwrap()
                .for_sharing(Sharing::Shared)
        };
        assert_eq!(model("on write A { a = value; }").by_state.len(), 1);
        assert_eq!(
            model("on write A { a = value; b = value; }").by_state.len(),
            0
        );
        assert_eq!(model("on write B { a = value; }").by_state.len(), 0);
        assert_eq!(model("on write A {}").by_state.len(), 0);
        let table = "table t at x, 1 max 1 entry 8 { address y at 0: 4; read y, 1; }";
        let rule = "on write A { if shadow(t) { b = value; } }";
        assert_eq!(model(&format!("{table} {rule}")).by_state.len(), 0);
        assert_eq!(model("on write A { b = peek(B); }").by_state.len(), 0);
    }
}
