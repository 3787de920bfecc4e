//! Which values are worth trying: those that the rules tell apart.

use std::collections::BTreeSet;

use super::demand::Demand;
use crate::language::syntax::Binary;
use crate::model::Model;
use crate::model::program::{Op, Slot};

/// Guest memory of the exploration, from 0.
pub const MEMORY: u64 = 0x10_0000;
/// Bits whose combinations are all tried.
const MOST_BITS: u32 = 6;
/// Registers that a rule looks at whose combinations are all tried.
const MOST_PEEKS: usize = 4;

/// Values to write to a register of `width` bytes, or to be read from it: all, as far as they matter, if few bits do; otherwise those that
/// are compared with something, their neighbours, the bits that are tested, and the least and the largest.
pub fn values(model: &Model, demand: &Demand, start: u16, width: u8) -> Vec<u64> {
    let largest = u64::MAX >> (64 - 8 * u32::from(width.clamp(1, 8)));
    let bits = demand.of_value(start) & largest;
    if bits.count_ones() <= MOST_BITS {
        return combinations(bits);
    }
    let constants = constants(model, demand, start);
    let tested: BTreeSet<u64> = constants
        .iter()
        .copied()
        .filter(|c| c.is_power_of_two())
        .collect();
    let most = usize::try_from(MOST_BITS).unwrap_or(0);
    let tested = tested.into_iter().take(most).fold(0, |all, bit| all | bit);
    let mut values = BTreeSet::from([0, largest]);
    values.extend(combinations(tested));
    let sets_address = model.rule_ops(start).any(|op| match op {
        Op::Set { to, .. } => model.variables.iter().any(|v| v.address && v.slot == *to),
        _ => false,
    });
    if sets_address {
        // Inside, at the end, and where the memory ends.
        values.extend([0x1000, MEMORY - 0x100, MEMORY]);
    }
    for bound in compared(model, demand) {
        values.extend([
            bound.wrapping_sub(1),
            bound,
            bound.wrapping_add(1),
            bound >> 8,
        ]);
    }
    for by in shifts(model, demand, start) {
        values.extend(constants.iter().filter_map(|c| c.checked_shl(by)));
    }
    values.extend(constants);
    // Of values that differ in nothing that matters, one.
    let values = values.into_iter().filter(|value| *value <= largest);
    let values: BTreeSet<u64> = values.map(|value| value & bits).collect();
    values.into_iter().collect()
}

fn combinations(bits: u64) -> Vec<u64> {
    let mut values = vec![bits];
    while let Some(last) = values.last().copied().filter(|last| *last != 0) {
        values.push((last - 1) & bits);
    }
    values.reverse();
    values
}

/// The registers that a rule looks at, if what it sees matters.
pub fn peeks(model: &Model, demand: &Demand, start: u16) -> Vec<u16> {
    let registers = model.rule_ops(start).filter_map(|op| match *op {
        Op::Peek { to, register } => (demand.of_slot(start, to) != 0).then_some(register),
        _ => None,
    });
    let registers: BTreeSet<u16> = registers.collect();
    registers.into_iter().take(MOST_PEEKS).collect()
}

/// The numbers that variables that matter are compared with: what is written here may be compared there.
fn compared(model: &Model, demand: &Demand) -> BTreeSet<u64> {
    use Binary::{Greater, GreaterEqual, Less, LessEqual};
    let mut slots = BTreeSet::new();
    for start in demand.pieces() {
        for op in model.rule_ops(start) {
            if let Op::Binary {
                operator: Less | LessEqual | Greater | GreaterEqual,
                to,
                left,
                right,
            } = *op
                && demand.of_slot(start, to) != 0
            {
                slots.extend([left, right]);
            }
        }
    }
    known(model, &slots)
}

fn constants(model: &Model, demand: &Demand, start: u16) -> BTreeSet<u64> {
    let mut slots = BTreeSet::new();
    for op in model.rule_ops(start) {
        match *op {
            Op::Binary {
                to, left, right, ..
            } if demand.of_slot(start, to) != 0 => slots.extend([left, right]),
            Op::JumpUnlessEqual { left, right, .. } => slots.extend([left, right]),
            Op::JumpUnlessAny { slot, mask, .. } => slots.extend([slot, mask]),
            _ => {}
        }
    }
    known(model, &slots)
}

/// By how much a rule shifts what matters to the right, to look at a field.
fn shifts(model: &Model, demand: &Demand, start: u16) -> BTreeSet<u32> {
    let shifts = model.rule_ops(start).filter_map(|op| match *op {
        Op::Binary {
            operator: Binary::ShiftRight,
            to,
            right,
            ..
        } if demand.of_slot(start, to) != 0 => Some(right),
        _ => None,
    });
    let shifts = known(model, &shifts.collect());
    shifts
        .into_iter()
        .filter_map(|by| u32::try_from(by).ok())
        .collect()
}

fn known(model: &Model, slots: &BTreeSet<Slot>) -> BTreeSet<u64> {
    let constants = model.constants.iter();
    constants
        .filter(|(slot, _)| slots.contains(slot))
        .map(|(_, value)| *value)
        .collect()
}
