//! Which part of a model a property depends on. That part alone is explored, and as it is smaller, whole.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::Model;
use crate::model::program::{Code, Op, Slot};

/// What is looked after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property {
    /// A transfer runs only on what was checked.
    Transfer(usize),
    /// What the model promises.
    Promise(usize),
    /// The states of a machine are reached.
    Machine(usize),
    /// There is a way back to where the device is reusable.
    Reusable,
    /// The arms of a `match`, by the denial of what none covers, cover everything.
    Match(u16),
}

/// Properties, and the part of the model that they depend on.
#[derive(Debug)]
pub struct Slice {
    pub properties: Vec<Property>,
    pub variables: BTreeSet<Slot>,
    /// Where what depends on other variables denies nothing: more can happen than in the whole model, and nothing less.
    pub model: Model,
}

/// What a rule does, and the variables that this depends on, whether it happens included.
struct Effect {
    at: usize,
    kind: Kind,
    sources: BTreeSet<Slot>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Set(Slot),
    Check(usize),
    Require(u16),
    Reset,
}

struct Rule {
    /// What its register's bank depends on.
    bank: BTreeSet<Slot>,
    effects: Vec<Effect>,
}

/// The parts that have to be explored, the small ones first. None is a part of another.
pub fn slices(model: &Model) -> Vec<Slice> {
    let rules = rules(model);
    let mut wanted: Vec<(Property, BTreeSet<Slot>)> = properties(model, &rules)
        .into_iter()
        .map(|(property, sources)| (property, closure(&rules, property, sources)))
        .collect();
    wanted.sort_by_key(|(_, variables)| std::cmp::Reverse(variables.len()));
    let mut slices: Vec<Slice> = Vec::new();
    for (property, variables) in wanted {
        let whole = slices
            .iter_mut()
            .find(|slice| slice.variables.is_superset(&variables));
        match whole {
            Some(slice) => slice.properties.push(property),
            None => slices.push(Slice {
                properties: vec![property],
                variables,
                model: model.clone(),
            }),
        }
    }
    slices.reverse();
    for slice in &mut slices {
        slice.cut(&rules);
    }
    slices
}

impl Slice {
    fn cut(&mut self, rules: &[Rule]) {
        for effect in rules.iter().flat_map(|rule| &rule.effects) {
            let within = effect.sources.is_subset(&self.variables);
            let keep = match effect.kind {
                Kind::Require(_) => within,
                Kind::Check(number) => self.properties.contains(&Property::Transfer(number)),
                Kind::Set(_) | Kind::Reset => true,
            };
            if let (false, Some(op), Ok(next)) = (
                keep,
                self.model.ops.get_mut(effect.at),
                u16::try_from(effect.at + 1),
            ) {
                *op = Op::Jump(next);
            }
        }
    }
}

fn properties(model: &Model, rules: &[Rule]) -> Vec<(Property, BTreeSet<Slot>)> {
    let of = |codes: &[Code]| -> BTreeSet<Slot> {
        let sources = codes.iter().flat_map(|code| expression(model, *code));
        sources.collect()
    };
    let reusable = model.reusable.iter();
    let mut all: Vec<_> = reusable
        .map(|reusable| (Property::Reusable, of(&[*reusable])))
        .collect();
    for (transfer, i) in model.transfers.iter().zip(0..) {
        let codes = [transfer.address, transfer.length, transfer.active];
        all.push((Property::Transfer(i), of(&codes)));
    }
    for (promise, i) in model.promises.iter().zip(0..) {
        let mut sources = of(&[promise.expr]);
        sources.extend(promise.during.iter().flat_map(|during| of(&[*during])));
        all.push((Property::Promise(i), sources));
    }
    for (machine, i) in model.machines.iter().zip(0..) {
        all.push((Property::Machine(i), BTreeSet::from([machine.slot])));
    }
    for effect in rules.iter().flat_map(|rule| &rule.effects) {
        if let Kind::Require(number) = effect.kind
            && let Some(denial) = model.denials.get(usize::from(number))
            && denial.uncovered
        {
            all.push((Property::Match(number), effect.sources.clone()));
        }
    }
    all
}

/// The variables and all that these are computed of. Whether a `require` lets an event happen is left out: it is looked at where
/// what it depends on is in the slice anyway.
fn closure(rules: &[Rule], property: Property, mut variables: BTreeSet<Slot>) -> BTreeSet<Slot> {
    loop {
        let before = variables.len();
        for rule in rules {
            for effect in &rule.effects {
                let matters = match effect.kind {
                    Kind::Set(slot) => variables.contains(&slot),
                    Kind::Check(number) => property == Property::Transfer(number),
                    Kind::Require(number) => property == Property::Match(number),
                    Kind::Reset => true,
                };
                if matters {
                    variables.extend(effect.sources.iter().chain(&rule.bank));
                }
            }
        }
        if variables.len() == before {
            return variables;
        }
    }
}

fn rules(model: &Model) -> Vec<Rule> {
    let mut rules = Vec::new();
    for register in &model.registers {
        let bank = register.when.map(|when| expression(model, when));
        for start in [register.on_read, register.on_write].into_iter().flatten() {
            rules.push(Rule {
                bank: bank.clone().unwrap_or_default(),
                effects: Flow::of(model, start).effects,
            });
        }
    }
    for start in [model.interrupt, model.timer].into_iter().flatten() {
        let bank = BTreeSet::new();
        let effects = Flow::of(model, start).effects;
        rules.push(Rule { bank, effects });
    }
    rules
}

/// The variables that an expression depends on.
fn expression(model: &Model, code: Code) -> BTreeSet<Slot> {
    Flow::of(model, code.start).sources(code.result)
}

/// Where the numbers of a piece of the program come from.
struct Flow<'a> {
    model: &'a Model,
    temporary: BTreeMap<Slot, BTreeSet<Slot>>,
    /// The jumps that what comes now may be left out by: where that ends, and what they depend on.
    jumps: Vec<(usize, BTreeSet<Slot>)>,
    effects: Vec<Effect>,
}

impl<'a> Flow<'a> {
    fn of(model: &'a Model, start: u16) -> Self {
        let mut flow = Self {
            model,
            temporary: BTreeMap::new(),
            jumps: Vec::new(),
            effects: Vec::new(),
        };
        for (op, at) in model.rule_ops(start).zip(usize::from(start)..) {
            flow.jumps.retain(|(end, _)| at < *end);
            flow.add(*op, at);
        }
        flow
    }

    fn sources(&self, slot: Slot) -> BTreeSet<Slot> {
        if let Some(sources) = self.temporary.get(&slot) {
            return sources.clone();
        }
        let mut variables = self.model.variables.iter();
        let variable = variables.any(|variable| variable.slot == slot);
        variable.then_some(slot).into_iter().collect()
    }

    fn all(&self, slots: &[Slot]) -> BTreeSet<Slot> {
        slots.iter().flat_map(|slot| self.sources(*slot)).collect()
    }

    fn conditional(&self, slots: &[Slot]) -> BTreeSet<Slot> {
        let jumps = self.jumps.iter().flat_map(|(_, sources)| sources);
        let mut all = self.all(slots);
        all.extend(jumps);
        all
    }

    fn effect(&mut self, at: usize, kind: Kind, slots: &[Slot]) {
        let sources = self.conditional(slots);
        self.effects.push(Effect { at, kind, sources });
    }

    fn jump(&mut self, at: usize, slots: &[Slot]) {
        let target = |at: usize| self.model.ops.get(at).and_then(|op| op.target());
        let mut end = at;
        let mut inner = at;
        while inner <= end {
            end = end.max(target(inner).map_or(end, usize::from));
            inner += 1;
        }
        let sources = self.all(slots);
        self.jumps.push((end, sources));
    }

    fn add(&mut self, op: Op, at: usize) {
        match op {
            Op::Set { to, from } => self.effect(at, Kind::Set(to), &[from]),
            Op::Fetch { from, .. } => self.effect(at, Kind::Set(from), &[]),
            Op::Check { transfer, .. } => self.effect(at, Kind::Check(transfer.into()), &[]),
            Op::Require { slot, denial } => self.effect(at, Kind::Require(denial), &[slot]),
            Op::Reset => self.effect(at, Kind::Reset, &[]),
            Op::Copy { to, from } => {
                // One of two that meet.
                let sources = self.conditional(&[from]);
                self.temporary.entry(to).or_default().extend(sources);
            }
            Op::Unary { to, from, .. } | Op::Device { to, from } => {
                let sources = self.conditional(&[from]);
                self.temporary.insert(to, sources);
            }
            Op::Binary {
                to, left, right, ..
            } => {
                let sources = self.conditional(&[left, right]);
                self.temporary.insert(to, sources);
            }
            Op::Peek { to, .. } => {
                let sources = self.conditional(&[]);
                self.temporary.insert(to, sources);
            }
            Op::JumpIfZero { slot, .. } => self.jump(at, &[slot]),
            Op::JumpUnlessAny { slot, mask, .. } => self.jump(at, &[slot, mask]),
            Op::JumpUnlessEqual { left, right, .. } => self.jump(at, &[left, right]),
            Op::End | Op::Jump(_) | Op::Put { .. } | Op::Forward(_) => {}
        }
    }
}
