//! Which values are worth trying: those that the rules tell apart.

use std::collections::BTreeSet;

use crate::language::syntax::Binary;
use crate::model::Model;
use crate::model::program::Op;

/// Guest memory of the exploration, from 0.
pub const MEMORY: u64 = 0x10_0000;
/// Values that are tried for one register.
const MOST: usize = 40;
/// Single bits whose combinations are all tried.
const MOST_BITS: usize = 5;

/// Values to write to a register of `width` bytes, or to be read from it.
pub fn values(model: &Model, start: u16, width: u8) -> Vec<u64> {
    let largest = u64::MAX >> (64 - 8 * u32::from(width.clamp(1, 8)));
    let constants = constants(model, start);
    let mut values = BTreeSet::from([0, largest]);
    let sets_address = model.rule_ops(start).any(|op| match op {
        Op::Set { to, .. } => model.variables.iter().any(|v| v.address && v.slot == *to),
        _ => false,
    });
    if sets_address {
        // Inside, at the end, and where the memory ends.
        values.extend([0x1000, MEMORY - 0x100, MEMORY]);
    }
    let bits: Vec<u64> = constants
        .iter()
        .copied()
        .filter(|constant| constant.is_power_of_two())
        .take(MOST_BITS)
        .collect();
    for chosen in 0_u32..1 << bits.len() {
        let set = bits.iter().zip(0..).filter(|(_, i)| chosen >> i & 1 != 0);
        values.insert(set.fold(0, |value, (bit, _)| value | bit));
    }
    values.extend(
        compared(model)
            .into_iter()
            .flat_map(|bound| [bound, bound >> 8]),
    );
    for &constant in &constants {
        values.extend([constant, constant.wrapping_add(1)]);
        if constant < 64 {
            values.extend([1 << constant, (2 << constant) | 1, 3 << constant]);
        }
    }
    values.retain(|value| *value <= largest);
    values.into_iter().take(MOST).collect()
}

/// Values that the device may show to a rule.
pub fn peeks(model: &Model, start: u16) -> Vec<u64> {
    if !model
        .rule_ops(start)
        .any(|op| matches!(op, Op::Peek { .. }))
    {
        return vec![0];
    }
    vec![0, u64::MAX]
}

/// The bounds of all rules: what is written here may be compared there.
fn compared(model: &Model) -> BTreeSet<u64> {
    use Binary::{Greater, GreaterEqual, Less, LessEqual};
    let mut slots = BTreeSet::new();
    for op in &model.ops {
        if let Op::Binary {
            operator: Less | LessEqual | Greater | GreaterEqual,
            left,
            right,
            ..
        } = op
        {
            slots.extend([*left, *right]);
        }
    }
    let known = model.constants.iter();
    known
        .filter(|(slot, _)| slots.contains(slot))
        .map(|(_, value)| *value)
        .collect()
}

fn constants(model: &Model, start: u16) -> BTreeSet<u64> {
    let mut slots = BTreeSet::new();
    for op in model.rule_ops(start) {
        match *op {
            Op::Binary { left, right, .. } | Op::JumpUnlessEqual { left, right, .. } => {
                slots.extend([left, right]);
            }
            Op::JumpUnlessAny { slot, mask, .. } => slots.extend([slot, mask]),
            _ => {}
        }
    }
    let known = model.constants.iter();
    known
        .filter(|(slot, _)| slots.contains(slot))
        .map(|(_, value)| *value)
        .collect()
}
