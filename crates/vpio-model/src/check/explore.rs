//! All that a guest and the device may do, what is new first.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::rc::Rc;

use super::samples::{self, MEMORY};
use super::{Finding, Report, Transition};
use crate::engine::{At, Rule, Translation};
use crate::language::Access;
use crate::model::program::{Frame, Host, Slot, Which};
use crate::model::{Model, Sharing};

/// What can happen.
struct Event {
    label: String,
    start: u16,
    /// Where, if it is an access.
    access: Option<(Access, At)>,
    values: Vec<u64>,
    peeks: Vec<u64>,
}

/// A world that says what it is told to.
#[derive(Default)]
struct World {
    peek: u64,
    approved: Vec<Option<(u64, u64)>>,
}

impl Host for World {
    fn translate(&mut self, address: u64, length: u64, access: Access) -> Option<u64> {
        Translation::Identity { size: MEMORY }.translate(address, length, access)
    }

    fn peek(&mut self, _register: u16) -> u64 {
        self.peek
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

/// The numbers that tell one state from another.
#[derive(Clone, PartialEq, Eq, Hash)]
struct State {
    variables: Vec<u64>,
    approved: Vec<Option<(u64, u64)>>,
}

struct Node {
    state: State,
    /// How it was reached: from where, by which event, with which value.
    parent: Option<(usize, usize, u64)>,
    next: BTreeSet<usize>,
    reusable: bool,
    expanded: bool,
}

struct Explorer<'a> {
    model: &'a Model,
    events: Rc<[Event]>,
    live: Vec<Slot>,
    /// States that are to be looked into: first those with a number that no other had.
    work: VecDeque<usize>,
    seen: HashSet<(Slot, u64)>,
    nodes: Vec<Node>,
    known: HashMap<State, usize>,
    unchecked: BTreeMap<usize, Vec<String>>,
    uncovered: BTreeMap<usize, Vec<String>>,
    transitions: BTreeSet<Transition>,
    limit: usize,
    complete: bool,
}

pub fn explore(model: &Model, limit: usize) -> Report {
    let live = model.live(Sharing::Shared);
    let machines = model.machines.iter().map(|machine| machine.slot);
    let live: BTreeSet<Slot> = model
        .variables
        .iter()
        .map(|variable| variable.slot)
        .filter(|slot| live.contains(slot))
        .chain(machines)
        .collect();
    let mut explorer = Explorer {
        model,
        events: events(model, &live).into(),
        work: VecDeque::new(),
        seen: HashSet::new(),
        live: live.into_iter().collect(),
        nodes: Vec::new(),
        known: HashMap::new(),
        unchecked: BTreeMap::new(),
        uncovered: BTreeMap::new(),
        transitions: BTreeSet::new(),
        limit,
        complete: true,
    };
    explorer.run();
    explorer.report()
}

/// All that matters of what can happen.
fn events(model: &Model, live: &BTreeSet<Slot>) -> Vec<Event> {
    let mut events = Vec::new();
    for register in &model.registers {
        for access in [Access::Read, Access::Write] {
            let Some(start) = register.rule(access) else {
                continue;
            };
            if !model.may_matter(start, None, live) {
                continue;
            }
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
                values: samples::values(model, start, register.width),
                peeks: samples::peeks(model, start),
            });
        }
    }
    for (label, start) in [("interrupt", model.interrupt), ("timer", model.timer)] {
        let Some(start) = start else { continue };
        events.push(Event {
            label: label.to_owned(),
            start,
            access: None,
            values: vec![0],
            peeks: samples::peeks(model, start),
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
        self.add(&mut frame, &world, None);
        let events = self.events.clone();
        while let Some(at) = self.work.pop_front() {
            let Some(node) = self.nodes.get_mut(at) else {
                return;
            };
            node.expanded = true;
            let state = node.state.clone();
            for (number, event) in events.iter().enumerate() {
                self.expand(at, &state, (number, event), &mut frame, &mut world);
            }
        }
    }

    fn load(&self, state: &State, frame: &mut Frame, world: &mut World) {
        for (slot, value) in self.live.iter().zip(&state.variables) {
            frame.set(*slot, *value);
        }
        world.approved.clone_from(&state.approved);
    }

    fn expand(
        &mut self,
        from: usize,
        state: &State,
        (number, event): (usize, &Event),
        frame: &mut Frame,
        world: &mut World,
    ) {
        let start = event.start;
        self.load(state, frame, world);
        if let Some((access, at)) = event.access
            && self.model.rule(access, at, frame) != Some(Rule::At(start))
        {
            // Another bank.
            return;
        }
        for &value in &event.values {
            for &peek in &event.peeks {
                self.load(state, frame, world);
                world.peek = peek;
                frame.begin(value);
                match self.model.run(start, frame, world) {
                    Ok(()) => self.arrive(from, (number, value), frame, world),
                    Err(denial) => self.denied(from, (number, value), denial),
                }
            }
        }
    }

    fn denied(&mut self, from: usize, by: (usize, u64), denial: u16) {
        let Some(denial) = self.model.denials.get(usize::from(denial)) else {
            return;
        };
        if denial.uncovered && !self.uncovered.contains_key(&denial.span.start) {
            let trace = self.trace(from, Some(by));
            self.uncovered.insert(denial.span.start, trace);
        }
    }

    fn arrive(&mut self, from: usize, by: (usize, u64), frame: &mut Frame, world: &mut World) {
        for (number, transfer) in self.model.transfers.iter().enumerate() {
            if self.model.evaluate(transfer.active, frame, world) == 0 {
                continue;
            }
            let now = (
                self.model.evaluate(transfer.address, frame, world),
                self.model.evaluate(transfer.length, frame, world),
            );
            if world.approved.get(number) != Some(&Some(now))
                && !self.unchecked.contains_key(&number)
            {
                let trace = self.trace(from, Some(by));
                self.unchecked.insert(number, trace);
            }
        }
        self.note_transitions(from, by.0, frame);
        if let Some(to) = self.add(frame, world, Some((from, by.0, by.1)))
            && let Some(node) = self.nodes.get_mut(from)
        {
            node.next.insert(to);
        }
    }

    fn note_transitions(&mut self, from: usize, event: usize, frame: &Frame) {
        let (Some(node), Some(event)) = (self.nodes.get(from), self.events.get(event)) else {
            return;
        };
        for machine in &self.model.machines {
            let position = self.live.iter().position(|slot| *slot == machine.slot);
            let before = position.and_then(|at| node.state.variables.get(at));
            let after = frame.get(machine.slot);
            if before == Some(&after) {
                continue;
            }
            let state = |number: Option<u64>| {
                let number = number.and_then(|number| usize::try_from(number).ok());
                number
                    .and_then(|number| machine.states.get(number))
                    .cloned()
            };
            if let (Some(from), Some(to)) = (state(before.copied()), state(Some(after))) {
                self.transitions.insert(Transition {
                    machine: machine.name.clone(),
                    from,
                    to,
                    event: event.label.clone(),
                });
            }
        }
    }

    /// The state's number; None if there are too many already.
    fn add(
        &mut self,
        frame: &mut Frame,
        world: &World,
        parent: Option<(usize, usize, u64)>,
    ) -> Option<usize> {
        let state = State {
            variables: self.live.iter().map(|slot| frame.get(*slot)).collect(),
            approved: world.approved.clone(),
        };
        if let Some(&number) = self.known.get(&state) {
            return Some(number);
        }
        // Every state of every machine is looked into, whatever the limit.
        let fresh = |slot| !self.seen.contains(&(slot, frame.get(slot)));
        let mut machines = self.model.machines.iter();
        if self.nodes.len() >= self.limit && !machines.any(|machine| fresh(machine.slot)) {
            self.complete = false;
            return None;
        }
        // The device may show whatever makes it reusable.
        let reusable = [0, u64::MAX].into_iter().any(|peek| {
            let mut world = World {
                peek,
                approved: world.approved.clone(),
            };
            self.model.evaluate(self.model.reusable, frame, &mut world) != 0
        });
        let number = self.nodes.len();
        let pairs = self.live.iter().zip(&state.variables);
        let mut new = false;
        for (slot, value) in pairs {
            new |= self.seen.insert((*slot, *value));
        }
        if new {
            self.work.push_front(number);
        } else {
            self.work.push_back(number);
        }
        self.known.insert(state.clone(), number);
        self.nodes.push(Node {
            state,
            parent,
            next: BTreeSet::new(),
            reusable,
            expanded: false,
        });
        Some(number)
    }

    fn trace(&self, node: usize, last: Option<(usize, u64)>) -> Vec<String> {
        let label = |event: usize, value: u64| {
            let label = self.events.get(event).map_or("", |event| &event.label);
            format!("{label} {value:#x}")
        };
        let mut trace: Vec<String> = last.into_iter().map(|(e, v)| label(e, v)).collect();
        let mut at = node;
        while let Some((parent, event, value)) = self.nodes.get(at).and_then(|node| node.parent) {
            trace.push(label(event, value));
            at = parent;
        }
        trace.reverse();
        trace
    }

    /// The first state from which no state that is reusable, or was not looked into, is reached.
    fn stuck(&self) -> Option<usize> {
        let mut before: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for (from, node) in self.nodes.iter().enumerate() {
            for &to in &node.next {
                if let Some(list) = before.get_mut(to) {
                    list.push(from);
                }
            }
        }
        let mut good: Vec<bool> = self
            .nodes
            .iter()
            .map(|node| node.reusable || !node.expanded)
            .collect();
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

    fn report(self) -> Report {
        let mut findings = Vec::new();
        for (number, trace) in &self.unchecked {
            if let Some(transfer) = self.model.transfers.get(*number) {
                findings.push(Finding::UncheckedDma {
                    transfer: transfer.name.clone(),
                    trace: trace.clone(),
                });
            }
        }
        for machine in &self.model.machines {
            for state in machine.states.iter().skip(1) {
                let reached = self
                    .transitions
                    .iter()
                    .any(|found| found.machine == machine.name && found.to == *state);
                if !reached {
                    findings.push(Finding::Unreachable {
                        machine: machine.name.clone(),
                        state: state.clone(),
                    });
                }
            }
        }
        for (at, trace) in &self.uncovered {
            findings.push(Finding::Uncovered {
                at: *at,
                trace: trace.clone(),
            });
        }
        // A limit that cut edges off makes every state look stuck that needs them.
        if self.complete
            && let Some(stuck) = self.stuck()
        {
            let trace = self.trace(stuck, None);
            findings.push(Finding::NoWayBack { trace });
        }
        Report {
            states: self.nodes.len(),
            complete: self.complete,
            findings,
            transitions: self.transitions,
        }
    }
}
