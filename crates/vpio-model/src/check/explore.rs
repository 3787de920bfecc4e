//! All that a guest and the device may do to a slice of the model, breadth first.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use super::demand::Demand;
use super::samples::{self, MEMORY};
use super::slice::{Property, Slice};
use super::{Finding, Transition};
use crate::engine::{At, Rule, Translation};
use crate::language::Access;
use crate::model::Model;
use crate::model::program::{Code, Frame, Host, Op, Slot, Which};

/// What came of a slice.
#[derive(Debug)]
pub struct Explored {
    /// How many states were reached.
    pub states: usize,
    /// Whether these are all that the tried values lead to.
    pub complete: bool,
    pub findings: Vec<Finding>,
    pub transitions: BTreeSet<Transition>,
}

/// What can happen.
struct Event {
    label: String,
    start: u16,
    /// Where, if it is an access.
    access: Option<(Access, At)>,
    values: Vec<u64>,
    /// The registers that the rule looks at. Each shows all zeroes or all ones.
    peeks: Vec<u16>,
}

/// A world that says what it is told to.
#[derive(Default)]
struct World {
    peeks: Vec<u16>,
    /// Which of them show all ones.
    shown: u32,
    /// The last that was found to be within bounds, of each transfer.
    approved: Vec<Option<(u64, u64)>>,
}

impl Host for World {
    fn translate(&mut self, address: u64, length: u64, access: Access) -> Option<u64> {
        Translation::Identity { size: MEMORY }.translate(address, length, access)
    }

    fn peek(&mut self, register: u16) -> u64 {
        let found = self.peeks.iter().zip(0..).find(|(r, _)| **r == register);
        // Of too many, all show the same.
        let at = found.map_or(0, |(_, at)| at);
        if self.shown >> at & 1 == 0 {
            0
        } else {
            u64::MAX
        }
    }

    fn put(&mut self, _register: u16, _value: u64) {}

    fn approve(&mut self, transfer: u8, address: u64, length: u64) {
        if let Some(place) = self.approved.get_mut(usize::from(transfer)) {
            *place = Some((address, length));
        }
    }

    fn fetch(
        &mut self,
        _model: &Model,
        _frame: &mut Frame,
        _table: u8,
        _which: Which,
        _from: u64,
        to: u64,
    ) -> Option<u64> {
        Some(to)
    }
}

/// What tells one state from another: variables, as far as they matter, and which transfers would run on what was checked.
type State = (Vec<u64>, Vec<bool>);

/// An event in a state.
#[derive(Clone, Copy)]
struct Step {
    from: usize,
    event: usize,
    value: u64,
}

struct Node {
    state: State,
    /// How it was reached; None at the start.
    parent: Option<Step>,
    next: Vec<usize>,
    reusable: bool,
}

struct Explorer<'a> {
    slice: &'a Slice,
    model: &'a Model,
    /// The variables, and their bits that matter.
    live: Vec<(Slot, u64)>,
    events: Rc<[Event]>,
    nodes: Vec<Node>,
    known: HashMap<State, usize>,
    unsafe_properties: BTreeMap<usize, Finding>,
    uncovered: BTreeMap<usize, Vec<String>>,
    /// Machine, state before, state after, event.
    transitions: BTreeSet<(usize, u64, u64, usize)>,
    limit: usize,
    complete: bool,
}

/// Explores until there are `limit` states, or something is found that makes the model unsafe.
pub fn explore(slice: &Slice, limit: usize) -> Explored {
    let demand = Demand::of(slice);
    let live = slice.variables.iter();
    let mut explorer = Explorer {
        slice,
        model: &slice.model,
        live: live
            .map(|slot| (*slot, demand.of_variable(*slot)))
            .collect(),
        events: events(slice, &demand).into(),
        nodes: Vec::new(),
        known: HashMap::new(),
        unsafe_properties: BTreeMap::new(),
        uncovered: BTreeMap::new(),
        transitions: BTreeSet::new(),
        limit,
        complete: true,
    };
    explorer.run();
    explorer.report()
}

/// All of what can happen that the slice takes notice of.
fn events(slice: &Slice, demand: &Demand) -> Vec<Event> {
    let model = &slice.model;
    let matters = |start: u16| {
        model.rule_ops(start).any(|op| match op {
            Op::Set { to, .. } => slice.variables.contains(to),
            Op::Fetch { from, .. } => slice.variables.contains(from),
            Op::Check { .. } | Op::Reset => true,
            Op::Require { denial, .. } => {
                let denial = model.denials.get(usize::from(*denial));
                denial.is_some_and(|denial| denial.uncovered)
            }
            _ => false,
        })
    };
    let mut events = Vec::new();
    for register in &model.registers {
        for access in [Access::Read, Access::Write] {
            let Some(start) = register.rule(access).filter(|start| matters(*start)) else {
                continue;
            };
            let word = match access {
                Access::Read => "read",
                Access::Write => "write",
            };
            let at = At {
                space: register.space,
                offset: register.offset,
                width: register.width,
            };
            events.push(Event {
                label: format!("{word} {}", register.name),
                start,
                access: Some((access, at)),
                values: samples::values(model, demand, start, register.width),
                peeks: samples::peeks(model, demand, start),
            });
        }
    }
    for (label, start) in [("interrupt", model.interrupt), ("timer", model.timer)] {
        let Some(start) = start.filter(|start| matters(*start)) else {
            continue;
        };
        events.push(Event {
            label: label.to_owned(),
            start,
            access: None,
            values: vec![0],
            peeks: samples::peeks(model, demand, start),
        });
    }
    events
}

impl Explorer<'_> {
    fn run(&mut self) {
        let mut frame = Frame::new(self.model);
        let mut world = World {
            approved: vec![None; self.model.transfers.len()],
            ..World::default()
        };
        self.arrive(None, &mut frame, &mut world);
        let events = self.events.clone();
        let mut at = 0;
        while let Some(node) = self.nodes.get(at) {
            if !self.unsafe_properties.is_empty() {
                self.complete = false;
                break;
            }
            let state = node.state.clone();
            let before = self.held(&state, &mut frame, &mut world);
            for (number, event) in events.iter().enumerate() {
                self.load(&state, &mut frame, &mut world);
                if let Some((access, place)) = event.access
                    && !matches!(
                        self.model.rule(access, place, &mut frame),
                        Some(Rule::At { start, .. }) if start == event.start
                    )
                {
                    // Another bank.
                    continue;
                }
                world.peeks.clone_from(&event.peeks);
                for &value in &event.values {
                    for shown in 0..1 << event.peeks.len() {
                        self.load(&state, &mut frame, &mut world);
                        world.shown = shown;
                        frame.begin(value);
                        let by = Step {
                            from: at,
                            event: number,
                            value,
                        };
                        match self.model.run(event.start, &mut frame, &mut world) {
                            Ok(()) => {
                                self.compare(by, &before, &mut frame, &mut world);
                                self.note_transitions(by, &frame);
                                if let Some(to) = self.arrive(Some(by), &mut frame, &mut world)
                                    && let Some(node) = self.nodes.get_mut(at)
                                    && !node.next.contains(&to)
                                {
                                    node.next.push(to);
                                }
                            }
                            Err(denial) => self.denied(by, denial),
                        }
                    }
                }
            }
            at += 1;
        }
    }

    fn load(&self, (variables, approved): &State, frame: &mut Frame, world: &mut World) {
        for ((slot, _), value) in self.live.iter().zip(variables) {
            frame.set(*slot, *value);
        }
        let approvals = world.approved.iter_mut().zip(&self.model.transfers);
        for ((place, transfer), approved) in approvals.zip(approved) {
            // Nothing but the transfer as it would run now counts as checked before.
            *place = None;
            if *approved {
                let of = |code: Code, frame: &mut Frame| {
                    self.model.evaluate(code, frame, &mut World::default())
                };
                *place = Some((of(transfer.address, frame), of(transfer.length, frame)));
            }
        }
    }

    /// The promises, by number, that are about to be kept, and the value to keep.
    fn held(&self, state: &State, frame: &mut Frame, world: &mut World) -> Vec<(usize, u64)> {
        self.load(state, frame, world);
        let mut held = Vec::new();
        for (number, promise) in self.promises() {
            if let Some(during) = promise.during
                && self.model.evaluate(during, frame, world) != 0
            {
                held.push((number, self.model.evaluate(promise.expr, frame, world)));
            }
        }
        held
    }

    fn promises(&self) -> impl Iterator<Item = (usize, &crate::model::Promise)> {
        let numbers = self.slice.properties.iter().filter_map(|p| match p {
            Property::Promise(number) => Some(*number),
            _ => None,
        });
        numbers.filter_map(|number| Some((number, self.model.promises.get(number)?)))
    }

    /// Finds promises of what does not change that were broken.
    fn compare(&mut self, by: Step, before: &[(usize, u64)], frame: &mut Frame, world: &mut World) {
        let mut broken = Vec::new();
        for &(number, value) in before {
            if let Some(promise) = self.model.promises.get(number)
                && let Some(during) = promise.during
                && self.model.evaluate(during, frame, world) != 0
                && self.model.evaluate(promise.expr, frame, world) != value
            {
                broken.push((number, promise.why.clone()));
            }
        }
        for (number, why) in broken {
            let key = self.model.transfers.len() + number;
            let trace = self.trace(Some(by));
            let finding = Finding::BrokenPromise { why, trace };
            self.unsafe_properties.entry(key).or_insert(finding);
        }
    }

    fn denied(&mut self, by: Step, denial: u16) {
        let Some(denial) = self.model.denials.get(usize::from(denial)) else {
            return;
        };
        if denial.uncovered && !self.uncovered.contains_key(&denial.span.start) {
            let trace = self.trace(Some(by));
            self.uncovered.insert(denial.span.start, trace);
        }
    }

    fn note_transitions(&mut self, by: Step, frame: &Frame) {
        let Some(node) = self.nodes.get(by.from) else {
            return;
        };
        for property in &self.slice.properties {
            if let Property::Machine(number) = property
                && let Some(machine) = self.model.machines.get(*number)
                && let Some(position) = self.live.iter().position(|(s, _)| *s == machine.slot)
                && let Some(before) = node.state.0.get(position)
                && *before != frame.get(machine.slot)
            {
                let after = frame.get(machine.slot);
                self.transitions.insert((*number, *before, after, by.event));
            }
        }
    }

    /// The state's number, and what is wrong with it; None if there are too many already.
    fn arrive(&mut self, by: Option<Step>, frame: &mut Frame, world: &mut World) -> Option<usize> {
        let mut approved = Vec::with_capacity(self.model.transfers.len());
        let mut wrong = Vec::new();
        for (number, transfer) in self.model.transfers.iter().enumerate() {
            if !self.slice.properties.contains(&Property::Transfer(number)) {
                approved.push(false);
                continue;
            }
            let now = (
                self.model.evaluate(transfer.address, frame, world),
                self.model.evaluate(transfer.length, frame, world),
            );
            let good = world.approved.get(number) == Some(&Some(now));
            approved.push(good);
            if !good && self.model.evaluate(transfer.active, frame, world) != 0 {
                wrong.push(number);
            }
        }
        let variables = self.live.iter();
        let variables = variables.map(|(slot, bits)| frame.get(*slot) & bits);
        let state = (variables.collect(), approved);
        if let Some(&number) = self.known.get(&state) {
            return Some(number);
        }
        let transfers = self.model.transfers.len();
        for (number, promise) in self.promises() {
            if promise.during.is_none() && self.model.evaluate(promise.expr, frame, world) == 0 {
                wrong.push(transfers + number);
            }
        }
        for number in wrong {
            let trace = self.trace(by);
            self.found(number, trace);
        }
        if self.nodes.len() >= self.limit {
            self.complete = false;
            return None;
        }
        // The device may show whatever makes it reusable.
        let reusable = self.model.reusable.is_some_and(|reusable| {
            [0, 1].into_iter().any(|shown| {
                world.peeks.clear();
                world.shown = shown;
                self.model.evaluate(reusable, frame, world) != 0
            })
        });
        let number = self.nodes.len();
        self.known.insert(state.clone(), number);
        self.nodes.push(Node {
            state,
            parent: by,
            next: Vec::new(),
            reusable,
        });
        Some(number)
    }

    fn found(&mut self, number: usize, trace: Vec<String>) {
        let transfers = self.model.transfers.len();
        let finding = match self.model.transfers.get(number) {
            Some(transfer) => Finding::UncheckedDma {
                transfer: transfer.name.clone(),
                trace,
            },
            None => {
                let promise = self.model.promises.get(number - transfers);
                let why = promise.map_or_else(String::new, |promise| promise.why.clone());
                Finding::BrokenPromise { why, trace }
            }
        };
        self.unsafe_properties.entry(number).or_insert(finding);
    }

    fn trace(&self, mut step: Option<Step>) -> Vec<String> {
        let mut trace = Vec::new();
        while let Some(Step { from, event, value }) = step {
            let label = self.events.get(event).map_or("", |event| &event.label);
            trace.push(format!("{label} {value:#x}"));
            step = self.nodes.get(from).and_then(|node| node.parent);
        }
        trace.reverse();
        trace
    }

    /// The first state from which no state that is reusable is reached.
    fn stuck(&self) -> Option<usize> {
        let mut before: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for (from, node) in self.nodes.iter().enumerate() {
            for &to in &node.next {
                if let Some(list) = before.get_mut(to) {
                    list.push(from);
                }
            }
        }
        let mut good: Vec<bool> = self.nodes.iter().map(|node| node.reusable).collect();
        let mut work: Vec<usize> = (0..good.len())
            .filter(|at| good.get(*at) == Some(&true))
            .collect();
        while let Some(at) = work.pop() {
            for &from in before.get(at).into_iter().flatten() {
                if let Some(mark) = good.get_mut(from)
                    && !*mark
                {
                    *mark = true;
                    work.push(from);
                }
            }
        }
        good.iter().position(|good| !good)
    }

    fn transitions(&self) -> BTreeSet<Transition> {
        let named = |&(machine, from, to, event): &(usize, u64, u64, usize)| {
            let machine = self.model.machines.get(machine)?;
            let state = |number| machine.states.get(usize::try_from(number).ok()?).cloned();
            Some(Transition {
                machine: machine.name.clone(),
                from: state(from)?,
                to: state(to)?,
                event: self.events.get(event)?.label.clone(),
            })
        };
        self.transitions.iter().filter_map(named).collect()
    }

    fn report(self) -> Explored {
        let transitions = self.transitions();
        let mut findings: Vec<Finding> = self.unsafe_properties.values().cloned().collect();
        for (at, trace) in &self.uncovered {
            findings.push(Finding::Uncovered {
                at: *at,
                trace: trace.clone(),
            });
        }
        // What a limit cut off may be what is missed here.
        for property in self.slice.properties.iter().filter(|_| self.complete) {
            match property {
                Property::Machine(number) => {
                    let machine = self.model.machines.get(*number);
                    let states = machine.iter().flat_map(|machine| {
                        let states = machine.states.iter().skip(1);
                        states.map(|state| (&machine.name, state))
                    });
                    for (machine, state) in states {
                        let reached =
                            |found: &Transition| found.machine == *machine && found.to == *state;
                        if !transitions.iter().any(reached) {
                            findings.push(Finding::Unreachable {
                                machine: machine.clone(),
                                state: state.clone(),
                            });
                        }
                    }
                }
                Property::Reusable => {
                    if let Some(stuck) = self.stuck() {
                        let trace = self.trace(self.nodes.get(stuck).and_then(|node| node.parent));
                        findings.push(Finding::NoWayBack { trace });
                    }
                }
                Property::Transfer(_) | Property::Promise(_) | Property::Match(_) => {}
            }
        }
        Explored {
            states: self.nodes.len(),
            complete: self.complete,
            findings,
            transitions,
        }
    }
}
