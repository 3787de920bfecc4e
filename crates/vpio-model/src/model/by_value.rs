//! What the rule of a register of one byte comes down to for each value: most of it is about nothing but the value.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::compile::MAX_OPS;
use super::program::{Op, Slot, VALUE, Which, binary, unary};
use crate::language::syntax::Binary;

/// Where the rule begins, for each value.
#[derive(Clone, Debug)]
pub struct ByValue(Box<[u16]>);

impl ByValue {
    /// Appends to a model's ops, up to [`MAX_OPS`], what the rule that begins at `start` comes down to. None if that is no less for any value.
    pub fn append(
        ops: &mut Vec<Op>,
        start: u16,
        constants: &BTreeMap<u64, Slot>,
        variables: &BTreeSet<Slot>,
    ) -> Option<Self> {
        let rule: Vec<Op> = ops.iter().skip(start.into()).copied().collect();
        let end = rule.iter().position(|op| *op == Op::End)?;
        let rule = rule.get(..=end)?;
        let mut known: HashMap<Vec<Op>, u16> = HashMap::new();
        let starts = (0..=u8::MAX).map(|value| {
            let mut code = Residual::of(rule, start, Some(value), constants, variables).link();
            end_early(&mut code);
            if code.len() >= rule.len() || ops.len() + code.len() > MAX_OPS {
                return start;
            }
            *known.entry(code.clone()).or_insert_with(|| {
                let Ok(base) = u16::try_from(ops.len()) else {
                    return start;
                };
                code.iter_mut().for_each(|op| op.lead(base));
                ops.append(&mut code);
                base
            })
        });
        let starts: Box<[u16]> = starts.collect();
        starts.iter().any(|at| *at != start).then_some(Self(starts))
    }

    /// Where it begins for a value.
    #[inline]
    pub fn at(&self, value: u64) -> Option<u16> {
        self.0.get(usize::try_from(value).ok()?).copied()
    }
}

/// Numbers that are known, besides the constants.
type Facts = BTreeMap<Slot, u64>;

/// What is left of a rule: ops, and where in the model they were. Jumps lead to where they did.
struct Residual<'a> {
    constants: &'a BTreeMap<u64, Slot>,
    /// The same, by slot, and the value.
    fixed: Facts,
    /// What is written, if that is known.
    value: Option<u64>,
    /// What is known where a way through the rule leads to.
    facts: BTreeMap<u16, Facts>,
    code: Vec<(u16, Op)>,
}

impl<'a> Residual<'a> {
    fn of(
        rule: &[Op],
        start: u16,
        value: Option<u8>,
        constants: &'a BTreeMap<u64, Slot>,
        variables: &BTreeSet<Slot>,
    ) -> Self {
        let value = value.map(u64::from);
        let fixed = constants.iter().map(|(number, slot)| (*slot, *number));
        let written = value.map(|value| (VALUE, value));
        let mut this = Self {
            constants,
            fixed: fixed.chain(written).collect(),
            value,
            facts: BTreeMap::from([(start, Facts::new())]),
            code: Vec::new(),
        };
        // Jumps lead forwards: whatever leads to an op was seen before it.
        for (op, at) in rule.iter().zip(start..) {
            if let Some(facts) = this.facts.remove(&at) {
                this.add(*op, at, facts, variables);
            }
        }
        this
    }

    fn number(&self, facts: &Facts, slot: Slot) -> Option<u64> {
        facts.get(&slot).or_else(|| self.fixed.get(&slot)).copied()
    }

    /// Where there is this number whatever the rule does.
    fn place(&self, number: u64) -> Option<Slot> {
        let constant = self.constants.get(&number).copied();
        constant.or_else(|| (Some(number) == self.value).then_some(VALUE))
    }

    /// Where to find what the slot has, which may not have been computed.
    fn operand(&self, facts: &Facts, slot: Slot) -> Slot {
        let number = self.number(facts, slot);
        number.and_then(|number| self.place(number)).unwrap_or(slot)
    }

    /// Something leads to an op.
    fn flow(&mut self, to: u16, facts: Facts) {
        match self.facts.get_mut(&to) {
            Some(known) => known.retain(|slot, number| facts.get(slot) == Some(number)),
            None => {
                self.facts.insert(to, facts);
            }
        }
    }

    /// An intermediate result: computed, unless it is known and has a place.
    fn compute(&mut self, at: u16, to: Slot, number: Option<u64>, op: Op, facts: &mut Facts) {
        if number.and_then(|number| self.place(number)).is_none() {
            self.code.push((at, op));
        }
        learn(facts, to, number);
    }

    /// A jump that is taken if `condition`, as far as that is known.
    fn branch(&mut self, at: u16, to: u16, condition: Option<bool>, op: Op, facts: Facts) {
        match condition {
            Some(true) => self.code.push((at, Op::Jump(to))),
            Some(false) => {}
            None => self.code.push((at, op)),
        }
        if condition != Some(false) {
            self.flow(to, facts.clone());
        }
        if condition != Some(true) {
            self.flow(at + 1, facts);
        }
    }

    fn add(&mut self, op: Op, at: u16, mut facts: Facts, variables: &BTreeSet<Slot>) {
        let number = |this: &Self, slot| this.number(&facts, slot);
        let operand = |this: &Self, slot| this.operand(&facts, slot);
        match op {
            Op::End => return self.code.push((at, op)),
            Op::Jump(to) => {
                self.code.push((at, op));
                return self.flow(to, facts);
            }
            Op::JumpIfZero { slot, to } => {
                let condition = number(self, slot).map(|number| number == 0);
                return self.branch(at, to, condition, op, facts);
            }
            Op::JumpUnlessAny { slot, mask, to } => {
                let both = number(self, slot).zip(number(self, mask));
                let condition = both.map(|(slot, mask)| slot & mask == 0);
                let (slot, mask) = (operand(self, slot), operand(self, mask));
                let op = Op::JumpUnlessAny { slot, mask, to };
                return self.branch(at, to, condition, op, facts);
            }
            Op::JumpUnlessEqual { left, right, to } => {
                let both = number(self, left).zip(number(self, right));
                let condition = both.map(|(left, right)| left != right);
                let (left, right) = (operand(self, left), operand(self, right));
                let op = Op::JumpUnlessEqual { left, right, to };
                return self.branch(at, to, condition, op, facts);
            }
            Op::Require { slot, denial } => {
                let known = number(self, slot);
                if known.is_none_or(|number| number == 0) {
                    let slot = operand(self, slot);
                    self.code.push((at, Op::Require { slot, denial }));
                }
                if known == Some(0) {
                    return;
                }
            }
            Op::Binary {
                operator,
                to,
                left,
                right,
            } => {
                let result = folded(operator, number(self, left), number(self, right));
                let (left, right) = (operand(self, left), operand(self, right));
                let op = Op::Binary {
                    operator,
                    to,
                    left,
                    right,
                };
                self.compute(at, to, result, op, &mut facts);
            }
            Op::Unary { operator, to, from } => {
                let result = number(self, from).map(|from| unary(operator, from));
                self.compute(at, to, result, op, &mut facts);
            }
            // What is assigned is always there: after a jump it may be another's.
            Op::Set { to, from } => {
                let (result, from) = (number(self, from), operand(self, from));
                self.code.push((at, Op::Set { to, from }));
                learn(&mut facts, to, result);
            }
            Op::Copy { to, from } => {
                let (result, from) = (number(self, from), operand(self, from));
                self.code.push((at, Op::Copy { to, from }));
                learn(&mut facts, to, result);
            }
            Op::Device { to, from } => {
                let from = operand(self, from);
                self.code.push((at, Op::Device { to, from }));
                learn(&mut facts, to, None);
            }
            Op::Peek { to, .. } => {
                self.code.push((at, op));
                learn(&mut facts, to, None);
            }
            Op::Put {
                register,
                value,
                times,
            } => {
                let (value, times) = (operand(self, value), operand(self, times));
                let op = Op::Put {
                    register,
                    value,
                    times,
                };
                self.code.push((at, op));
            }
            Op::Forward(slot) => self.code.push((at, Op::Forward(operand(self, slot)))),
            Op::Fetch {
                table,
                which,
                from,
                to,
                denial,
            } => {
                // A chain begins at a variable, and sets it.
                let chain = which == Which::Chain;
                let place = |slot| if chain { slot } else { operand(self, slot) };
                let op = Op::Fetch {
                    table,
                    which,
                    from: place(from),
                    to: place(to),
                    denial,
                };
                self.code.push((at, op));
                if chain {
                    learn(&mut facts, from, None);
                }
            }
            Op::Check { .. } => self.code.push((at, op)),
            Op::Reset => {
                self.code.push((at, op));
                facts.retain(|slot, _| !variables.contains(slot));
            }
        }
        self.flow(at + 1, facts);
    }

    /// The ops, with jumps that lead from the first of them on. The last is an end, and no other.
    fn link(self) -> Vec<Op> {
        let mut code = self.code;
        if code.last().is_none_or(|(_, op)| *op != Op::End) {
            code.push((u16::MAX, Op::End));
        }
        let code = needed(code);
        let linked = code.iter().map(|(_, op)| {
            let mut op = *op;
            if let Some(to) = op.target_mut()
                && let Ok(there) = u16::try_from(code.partition_point(|(at, _)| at < to))
            {
                *to = there;
            }
            op
        });
        linked.collect()
    }
}

/// A set of slots.
#[derive(Clone, Copy, Default)]
struct Slots([u64; 4]);

impl Slots {
    fn place(&mut self, slot: Slot) -> Option<(&mut u64, u64)> {
        let word = self.0.get_mut(usize::from(slot / 64))?;
        Some((word, 1 << (slot % 64)))
    }

    fn insert(&mut self, slot: Slot) {
        if let Some((word, bit)) = self.place(slot) {
            *word |= bit;
        }
    }

    /// Whether it was there.
    fn remove(&mut self, slot: Slot) -> bool {
        self.place(slot).is_some_and(|(word, bit)| {
            let was = *word & bit != 0;
            *word &= !bit;
            was
        })
    }

    fn extend(&mut self, other: Self) {
        for (word, more) in self.0.iter_mut().zip(other.0) {
            *word |= more;
        }
    }
}

/// Ends where a jump leads to the end.
fn end_early(code: &mut [Op]) {
    let last = u16::try_from(code.len().saturating_sub(1));
    for op in code {
        if let Op::Jump(to) = op
            && last.is_ok_and(|last| *to == last)
        {
            *op = Op::End;
        }
    }
}

/// Without jumps that lead to where it goes on anyway, and results that nothing looks at.
fn needed(code: Vec<(u16, Op)>) -> Vec<(u16, Op)> {
    // From the end on, with what is looked at from there on: every jump leads to what was seen.
    let mut kept: Vec<((u16, Op), Slots)> = Vec::with_capacity(code.len());
    for (at, op) in code.into_iter().rev() {
        let mut looked_at = match kept.last() {
            Some((_, slots)) if !matches!(op, Op::Jump(_)) => *slots,
            _ => Slots::default(),
        };
        if let Some(to) = op.target() {
            let there = kept.partition_point(|((at, _), _)| *at >= to);
            if there == kept.len() {
                continue;
            }
            let there = there.checked_sub(1).and_then(|there| kept.get(there));
            looked_at.extend(there.map(|(_, slots)| *slots).unwrap_or_default());
        }
        if let Some(to) = op.computes()
            && !looked_at.remove(to)
        {
            continue;
        }
        op.reads().for_each(|slot| looked_at.insert(slot));
        kept.push(((at, op), looked_at));
    }
    kept.into_iter().rev().map(|(op, _)| op).collect()
}

/// What a rule comes down to, in its place. Whether anything is left.
pub fn shorten(
    ops: &mut [Op],
    start: u16,
    constants: &BTreeMap<u64, Slot>,
    variables: &BTreeSet<Slot>,
) -> bool {
    let rule = ops.get(usize::from(start)..).unwrap_or_default();
    let Some(end) = rule.iter().position(|op| *op == Op::End) else {
        return true;
    };
    let rule = rule.get(..=end).unwrap_or_default();
    let mut code = Residual::of(rule, start, None, constants, variables).link();
    if code.len() <= rule.len() {
        code.iter_mut().for_each(|op| op.lead(start));
        let place = ops.iter_mut().skip(start.into());
        place.zip(&code).for_each(|(place, op)| *place = *op);
    }
    code.len() > 1
}

fn learn(facts: &mut Facts, slot: Slot, number: Option<u64>) {
    match number {
        Some(number) => facts.insert(slot, number),
        None => facts.remove(&slot),
    };
}

/// The result, as far as one operand says enough.
fn folded(operator: Binary, left: Option<u64>, right: Option<u64>) -> Option<u64> {
    match (operator, left, right) {
        (_, Some(left), Some(right)) => Some(binary(operator, left, right)),
        (Binary::And | Binary::BitAnd, Some(0), _) | (Binary::And | Binary::BitAnd, _, Some(0)) => {
            Some(0)
        }
        (Binary::Or, Some(one), _) | (Binary::Or, _, Some(one)) if one != 0 => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::language::Access;
    use crate::model::program::{Frame, Host};
    use crate::model::{Model, Register};
    use crate::models;

    /// Says what comes of the numbers that it is given, and keeps them.
    #[derive(Default, Debug, PartialEq)]
    struct World(Vec<u64>);

    fn answer(numbers: &[u64]) -> u64 {
        let sum = numbers
            .iter()
            .fold(0_u64, |sum, n| sum.wrapping_mul(31).wrapping_add(*n));
        sum.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    impl Host for World {
        fn translate(&mut self, address: u64, length: u64, _access: Access) -> Option<u64> {
            let answer = answer(&[1, address, length]);
            (answer >> 62 != 0).then_some(answer)
        }

        // What nothing looks at need not be read.
        fn peek(&mut self, register: u16) -> u64 {
            answer(&[2, register.into()])
        }

        fn put(&mut self, register: u16, value: u64) {
            self.0.extend([3, register.into(), value]);
        }

        fn approve(&mut self, transfer: u8, address: u64, length: u64) {
            self.0.extend([4, transfer.into(), address, length]);
        }

        fn fetch(
            &mut self,
            _model: &Model,
            _frame: &mut Frame,
            table: u8,
            _which: Which,
            from: u64,
            to: u64,
        ) -> Option<u64> {
            let asked = [5, table.into(), from, to];
            self.0.extend(asked);
            let answer = answer(&asked);
            (answer >> 62 != 0).then_some(answer)
        }
    }

    fn registers(model: &Model) -> impl Iterator<Item = (&Register, &ByValue)> {
        model.registers.iter().filter_map(|register| {
            let table = model.by_value.get(usize::from(register.by_value?))?;
            Some((register, table))
        })
    }

    /// What is left of a rule for a value does the same as the rule, whatever the state.
    #[test]
    fn nothing_is_lost() {
        let models = models::ALL.map(|(path, text)| Model::parse(path, text).unwrap());
        let mut found = 0;
        for model in &models {
            for (register, table) in registers(model) {
                found += 1;
                let start = register.on_write.unwrap();
                let state = proptest::collection::vec(any::<u64>(), model.variables.len());
                let config = ProptestConfig::with_cases(20);
                proptest!(config, |(state in state)| {
                    for value in 0..=255 {
                        let [whole, left] = [start, table.at(value).unwrap()].map(|start| {
                            let mut frame = Frame::new(model);
                            for (variable, number) in model.variables.iter().zip(&state) {
                                // Small numbers are those that rules compare with.
                                let number = if number & 1 == 0 { number >> 1 & 3 } else { *number };
                                frame.set(variable.slot, number & u64::MAX >> (64 - variable.bits));
                            }
                            frame.begin(value);
                            let mut world = World::default();
                            let result = model.run(start, &mut frame, &mut world);
                            let after = model.variables.iter().map(|v| frame.get(v.slot));
                            (result, world, after.collect::<Vec<_>>(), frame.forward, frame.reset)
                        });
                        prop_assert_eq!(whole, left, "{} {} {:#x}", &model.name, &register.name, value);
                    }
                });
            }
        }
        assert!(found > 8, "{found}");
    }

    /// Of the NE2000's CR, which its driver writes all the time, no arithmetic is left but what the state of the ring needs.
    #[test]
    fn little_is_left() {
        let model = Model::parse("ne2000.vpio", models::NE2000).unwrap();
        let (_, table) = registers(&model)
            .find(|(register, _)| register.name == "CR")
            .unwrap();
        let start = table.at(0x22).unwrap();
        let left: Vec<&Op> = model.rule_ops(start).collect();
        assert!(left.len() <= 8, "{left:#?}");
    }
}
