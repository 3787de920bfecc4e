//! What is wrong with a model, found without a device: by looking at it, and by trying out what a guest could do.

mod demand;
mod explore;
mod graph;
mod samples;
mod shape;
mod slice;

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use crate::model::Model;

/// What a check found out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// How many states were reached, of all parts of the model that were explored together.
    pub states: usize,
    /// Whether these are all that the tried values lead to, in each part.
    pub complete: bool,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// How machines went from state to state.
    pub transitions: BTreeSet<Transition>,
}

impl Report {
    /// Whether nothing was found that makes the model unsafe.
    pub fn is_safe(&self) -> bool {
        self.findings.iter().all(|finding| !finding.is_unsafe())
    }
}

/// A machine goes from one state to another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Transition {
    /// The machine.
    pub machine: String,
    /// Its state before.
    pub from: String,
    /// Its state afterwards.
    pub to: String,
    /// What made it go: `write CR`, `interrupt`.
    pub event: String,
}

/// How many states of a part of a model to look into before it is used: many times those of the models that come with this crate.
pub const STATES: usize = 100_000;

/// Something that is wrong with a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub enum Finding {
    /// The device may move data that nobody checked.
    UncheckedDma {
        /// The transfer.
        transfer: String,
        /// How to get there.
        trace: Vec<String>,
    },
    /// What the model promises with `always` or `stable` does not hold.
    BrokenPromise {
        /// The reason that the model gives for the promise.
        why: String,
        /// How to get there.
        trace: Vec<String>,
    },
    /// An address that the device is given is in no transfer, no buffer and no table.
    UncheckedAddress {
        /// The variable, or `table.field`.
        address: String,
    },
    /// The device gets an address as the guest wrote it, neither translated nor of a shadow.
    RawAddress {
        /// The register whose rule keeps the address and forwards nothing.
        register: String,
    },
    /// A state that nothing leads to.
    Unreachable {
        /// The machine.
        machine: String,
        /// The state.
        state: String,
    },
    /// An event that no arm of a `match` covers: it is denied.
    Uncovered {
        /// Where in the text, in bytes.
        at: usize,
        /// How to get there.
        trace: Vec<String>,
    },
    /// From here the device never becomes reusable.
    NoWayBack {
        /// How to get there.
        trace: Vec<String>,
    },
    /// Decisions depend on a variable that nothing changes.
    NeverChanges {
        /// The variable.
        variable: String,
    },
    /// A variable that no decision depends on, not even what is restored.
    Unused {
        /// The variable.
        variable: String,
    },
}

impl Finding {
    /// Whether a model with this must not be used. The others are worth a look.
    pub fn is_unsafe(&self) -> bool {
        matches!(
            self,
            Self::UncheckedDma { .. }
                | Self::BrokenPromise { .. }
                | Self::UncheckedAddress { .. }
                | Self::RawAddress { .. }
        )
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UncheckedDma { transfer, trace } => {
                write!(
                    f,
                    "transfer `{transfer}` runs unchecked after {}",
                    trace.join("; ")
                )
            }
            Self::BrokenPromise { why, trace } => {
                write!(f, "the promise \"{why}\" is broken by {}", trace.join("; "))
            }
            Self::UncheckedAddress { address } => {
                write!(f, "address `{address}` is in no transfer, buffer or table")
            }
            Self::RawAddress { register } => {
                write!(
                    f,
                    "the rule of `{register}` forwards the guest's own address"
                )
            }
            Self::Unreachable { machine, state } => {
                write!(f, "nothing leads to state `{state}` of `{machine}`")
            }
            Self::Uncovered { at, trace } => {
                write!(f, "no arm at byte {at} covers {}", trace.join("; "))
            }
            Self::NoWayBack { trace } => {
                write!(f, "never reusable again after {}", trace.join("; "))
            }
            Self::NeverChanges { variable } => write!(f, "nothing changes `{variable}`"),
            Self::Unused { variable } => write!(f, "nothing depends on `{variable}`"),
        }
    }
}

impl Model {
    /// Looks for what is wrong. For each transfer, promise and machine, and for being reusable, the part of the model that this depends on
    /// is explored by itself, until that part has `limit` states: what the rest of the model would deny happens there too. Of a written
    /// value whatever bits matter are tried in all combinations if they are few, and otherwise what the rules compare it with, and around.
    pub fn check(&self, limit: usize) -> Report {
        let mut report = Report {
            states: 0,
            complete: true,
            findings: Vec::new(),
            transitions: BTreeSet::new(),
        };
        for slice in slice::slices(self) {
            let explored = explore::explore(&slice, limit.max(1));
            report.states += explored.states;
            report.complete &= explored.complete;
            for finding in explored.findings {
                if !report.findings.contains(&finding) {
                    report.findings.push(finding);
                }
            }
            report.transitions.extend(explored.transitions);
        }
        report.findings.extend(shape::findings(self));
        report
    }

    /// Something that makes the model unsafe, as [`check`](Self::check) would report it, if there is anything.
    pub fn fault(&self, limit: usize) -> Option<Finding> {
        let shape = shape::findings(self).into_iter();
        let explored = slice::slices(self).into_iter();
        let explored = explored.flat_map(|slice| explore::explore(&slice, limit.max(1)).findings);
        shape.chain(explored).find(Finding::is_unsafe)
    }
}
