//! Which bits of which numbers can make a difference: states and values that differ in other bits only are the same.

use std::collections::{BTreeMap, BTreeSet};

use super::slice::{Property, Slice};
use crate::language::syntax::{Binary, Unary};
use crate::model::Model;
use crate::model::program::{Code, Op, Slot, VALUE};

/// For each slot, its bits that matter.
type Bits = BTreeMap<Slot, u64>;

/// Bits that matter.
#[derive(Debug, Default)]
pub struct Demand {
    variables: Bits,
    /// By where a rule or an expression begins.
    pieces: BTreeMap<u16, Bits>,
}

impl Demand {
    /// What matters to a slice's properties.
    pub fn of(slice: &Slice) -> Self {
        let model = &slice.model;
        let mut demand = Self::default();
        loop {
            let mut after = demand.variables.clone();
            for code in codes(model, &slice.properties) {
                let mut bits = demand.variables.clone();
                bits.insert(code.result, u64::MAX);
                let bits = backwards(model, code.start, bits);
                keep(&mut after, &slice.variables, &bits);
                demand.pieces.insert(code.start, bits);
            }
            for start in model.rules() {
                let bits = backwards(model, start, demand.variables.clone());
                keep(&mut after, &slice.variables, &bits);
                demand.pieces.insert(start, bits);
            }
            if after == demand.variables {
                return demand;
            }
            demand.variables = after;
        }
    }

    /// Those of a variable.
    pub fn of_variable(&self, slot: Slot) -> u64 {
        self.variables.get(&slot).copied().unwrap_or(0)
    }

    /// Those of what is written or was read, to the rule.
    pub fn of_value(&self, start: u16) -> u64 {
        self.of_slot(start, VALUE)
    }

    /// The rules, and the expressions that properties are made of: where they begin.
    pub fn pieces(&self) -> impl Iterator<Item = u16> {
        self.pieces.keys().copied()
    }

    /// Those of a number in a rule.
    pub fn of_slot(&self, start: u16, slot: Slot) -> u64 {
        let bits = self.pieces.get(&start);
        bits.and_then(|bits| bits.get(&slot)).copied().unwrap_or(0)
    }
}

fn keep(all: &mut Bits, variables: &BTreeSet<Slot>, bits: &Bits) {
    for slot in variables {
        if let Some(more) = bits.get(slot) {
            *all.entry(*slot).or_default() |= more;
        }
    }
}

/// The expressions that decide about the properties, and about banks.
fn codes(model: &Model, properties: &[Property]) -> Vec<Code> {
    let mut codes: Vec<Code> = model.registers.iter().filter_map(|r| r.when).collect();
    for property in properties {
        match property {
            Property::Transfer(number) => {
                let transfer = model.transfers.get(*number);
                codes.extend(
                    transfer
                        .iter()
                        .flat_map(|t| [t.address, t.length, t.active]),
                );
            }
            Property::Promise(number) => {
                let promise = model.promises.get(*number);
                codes.extend(promise.map(|promise| promise.expr));
                codes.extend(promise.and_then(|promise| promise.during));
            }
            Property::Machine(number) => {
                let result = model.machines.get(*number).map(|machine| machine.slot);
                // An expression of no ops.
                let start = u16::MAX;
                codes.extend(result.map(|result| Code { start, result }));
            }
            Property::Reusable => codes.extend(model.reusable),
            Property::Match(_) => {}
        }
    }
    codes
}

/// What matters before a piece of the program, of what matters after it.
fn backwards(model: &Model, start: u16, mut bits: Bits) -> Bits {
    let ops: Vec<Op> = model.rule_ops(start).copied().collect();
    let constants: BTreeMap<Slot, u64> = model.constants.iter().copied().collect();
    loop {
        let before = bits.clone();
        for op in ops.iter().rev() {
            op_backwards(*op, &constants, &mut bits);
        }
        if bits == before {
            return bits;
        }
    }
}

fn op_backwards(op: Op, constants: &Bits, bits: &mut Bits) {
    let of = |slot: Slot, bits: &Bits| bits.get(&slot).copied().unwrap_or(0);
    let mut needs = |slot: Slot, more: u64| *bits.entry(slot).or_default() |= more;
    match op {
        Op::Set { to, from } | Op::Copy { to, from } => {
            let more = of(to, bits);
            *bits.entry(from).or_default() |= more;
        }
        Op::Unary { operator, to, from } => {
            let more = match (operator, of(to, bits)) {
                (Unary::Not, 1..) => u64::MAX,
                (_, more) => more,
            };
            *bits.entry(from).or_default() |= more;
        }
        Op::Device { to, from } => {
            let more = if of(to, bits) == 0 { 0 } else { u64::MAX };
            *bits.entry(from).or_default() |= more;
        }
        Op::Binary {
            operator,
            to,
            left,
            right,
        } => {
            let more = of(to, bits);
            let known = |slot: &Slot| constants.get(slot).copied();
            let [of_left, of_right] = operands(operator, more, known(&left), known(&right));
            *bits.entry(left).or_default() |= of_left;
            *bits.entry(right).or_default() |= of_right;
        }
        Op::JumpIfZero { slot, .. } | Op::Require { slot, .. } => needs(slot, u64::MAX),
        Op::JumpUnlessAny { slot, mask, .. } => {
            needs(slot, constants.get(&mask).copied().unwrap_or(u64::MAX));
            needs(mask, u64::MAX);
        }
        Op::JumpUnlessEqual { left, right, .. } => {
            needs(left, u64::MAX);
            needs(right, u64::MAX);
        }
        // What is forwarded, put or fetched, nobody in an exploration sees.
        Op::Peek { .. }
        | Op::Check { .. }
        | Op::Fetch { .. }
        | Op::Put { .. }
        | Op::Forward(_)
        | Op::Jump(_)
        | Op::Reset
        | Op::End => {}
    }
}

/// What matters of the operands if these bits of the result do.
fn operands(operator: Binary, bits: u64, left: Option<u64>, right: Option<u64>) -> [u64; 2] {
    if bits == 0 {
        return [0, 0];
    }
    let shift = right.and_then(|by| u32::try_from(by).ok());
    match (operator, shift) {
        (Binary::BitAnd, _) => [
            bits & right.unwrap_or(u64::MAX),
            bits & left.unwrap_or(u64::MAX),
        ],
        (Binary::BitOr, _) => [bits & !right.unwrap_or(0), bits & !left.unwrap_or(0)],
        (Binary::BitXor, _) => [bits, bits],
        (Binary::ShiftLeft, Some(by)) => [bits.checked_shr(by).unwrap_or(0), u64::MAX],
        (Binary::ShiftRight, Some(by)) => [bits.checked_shl(by).unwrap_or(0), u64::MAX],
        (Binary::Add | Binary::Subtract | Binary::Multiply, _) => {
            let up_to = u64::MAX >> bits.leading_zeros();
            [up_to, up_to]
        }
        _ => [u64::MAX, u64::MAX],
    }
}
