//! What is seen by looking at the model alone.

use std::collections::BTreeSet;

use super::Finding;
use crate::model::program::{Op, Slot};
use crate::model::{Model, Sharing};

pub fn findings(model: &Model) -> Vec<Finding> {
    let mut findings = Vec::new();
    let live = model.live(Sharing::Shared);
    let assigned = assigned(model);
    let checked = checked(model);
    for variable in &model.variables {
        let name = || variable.name.clone();
        if variable.address && !checked.contains(&variable.slot) {
            findings.push(Finding::UncheckedAddress { address: name() });
        }
        match (
            live.contains(&variable.slot),
            assigned.contains(&variable.slot),
        ) {
            (true, false) => findings.push(Finding::NeverChanges { variable: name() }),
            (false, _) => findings.push(Finding::Unused { variable: name() }),
            (true, true) => {}
        }
    }
    for table in &model.tables {
        for (field, index) in table.fields.iter().zip(0..) {
            let buffer = table.buffers.iter().any(|buffer| buffer.field == index);
            let follow = table.follow.iter().any(|follow| follow.field == index);
            if field.address && !buffer && !follow {
                let address = format!("{}.{}", table.name, field.name);
                findings.push(Finding::UncheckedAddress { address });
            }
        }
    }
    for register in &model.registers {
        let Some(start) = register.on_write else {
            continue;
        };
        let sets = model.rule_ops(start).any(|op| match op {
            Op::Set { to, .. } => model.variables.iter().any(|v| v.address && v.slot == *to),
            _ => false,
        });
        let forwards = model.rule_ops(start).any(|op| matches!(op, Op::Forward(_)));
        if sets && !forwards {
            let register = register.name.clone();
            findings.push(Finding::RawAddress { register });
        }
    }
    findings
}

/// The variables that some rule sets.
fn assigned(model: &Model) -> BTreeSet<Slot> {
    let sets = model.ops.iter().filter_map(|op| match op {
        Op::Set { to, .. } => Some(*to),
        Op::Fetch { from, .. } => Some(*from),
        _ => None,
    });
    sets.collect()
}

/// What transfers and tables take their addresses from.
fn checked(model: &Model) -> BTreeSet<Slot> {
    let transfers = model.transfers.iter().map(|transfer| transfer.address);
    let tables = model.tables.iter().filter_map(|table| Some(table.at?.0));
    let mut checked = BTreeSet::new();
    for code in transfers.chain(tables) {
        checked.insert(code.result);
        for op in model.rule_ops(code.start) {
            if let Op::Binary { left, right, .. } = op {
                checked.extend([*left, *right]);
            }
        }
    }
    checked
}
