//! What a model says about one event after the other.

mod dma;
mod passthrough;
mod physical;
mod state;
mod table;

use std::sync::Arc;

pub use dma::{Dma, PAGE, Page, Translation};
pub use passthrough::Passthrough;
pub use physical::Physical;
pub use state::{EngineState, StateError};

use crate::language::{Access, Policy};
use crate::model::program::{Frame, Host, Which};
use crate::model::{Found, Model, Next};
use table::Outstanding;

/// Where an access goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct At {
    /// Number of the space, in the order of the model.
    pub space: u8,
    /// Offset from the start of the space, in bytes.
    pub offset: u64,
    /// 1, 2, 4 or 8 bytes.
    pub width: u8,
}

/// Why an event is denied, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Denied {
    /// What the model wants done.
    pub policy: Policy,
    /// What is wrong.
    pub reason: Arc<str>,
}

/// How an access fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// It changes nothing: let it through.
    Free,
    /// A rule decides: where it begins.
    At {
        /// For all values.
        start: u16,
        /// For each value.
        by_value: Option<u16>,
        /// What it makes of state and value.
        by_state: Option<u16>,
    },
}

/// A model at work.
#[derive(Debug)]
pub struct Engine<D> {
    model: Arc<Model>,
    frame: Frame,
    /// What the variables of the model's key say.
    state: u16,
    outstanding: Vec<Outstanding>,
    /// Whether any of them has entries.
    lent: bool,
    dma: D,
    reasons: Vec<Arc<str>>,
    unknown: Arc<str>,
    hooked: u64,
}

/// What rules see of the world.
pub(crate) struct Live<'a, D, P> {
    model: &'a Model,
    dma: &'a D,
    physical: &'a P,
    outstanding: &'a mut [Outstanding],
    lent: &'a mut bool,
}

impl<D: Dma, P: Physical> Host for Live<'_, D, P> {
    fn translate(&mut self, address: u64, length: u64, access: Access) -> Option<u64> {
        self.dma.translate(address, length, access)
    }

    fn peek(&mut self, register: u16) -> u64 {
        let register = self.model.registers.get(usize::from(register));
        register.map_or(u64::MAX, |register| {
            self.physical
                .read(register.space, register.offset, register.width)
        })
    }

    fn put(&mut self, register: u16, value: u64) {
        if let Some(register) = self.model.registers.get(usize::from(register)) {
            self.physical
                .write(register.space, register.offset, register.width, value);
        }
    }

    fn approve(&mut self, _transfer: u8, _address: u64, _length: u64) {}

    fn fetch(
        &mut self,
        model: &Model,
        frame: &mut Frame,
        table: u8,
        which: Which,
        from: u64,
        to: u64,
    ) -> Option<u64> {
        self.fetch_entries(model, frame, table.into(), which, (from, to))
    }
}

/// Nothing: what expressions about banks see.
struct Nowhere;

impl Host for Nowhere {
    fn translate(&mut self, _address: u64, _length: u64, _access: Access) -> Option<u64> {
        None
    }

    fn peek(&mut self, _register: u16) -> u64 {
        0
    }

    fn put(&mut self, _register: u16, _value: u64) {}

    fn approve(&mut self, _transfer: u8, _address: u64, _length: u64) {}

    fn fetch(
        &mut self,
        _model: &Model,
        _frame: &mut Frame,
        _table: u8,
        _which: Which,
        _from: u64,
        _to: u64,
    ) -> Option<u64> {
        None
    }
}

impl Model {
    /// Which rule decides about an access. None: it is not known, and denied.
    #[inline(always)]
    pub(crate) fn rule(&self, access: Access, at: At, frame: &mut Frame) -> Option<Rule> {
        let lookup = self.lookups.get(usize::from(at.space))?;
        match lookup.find(access, at.offset, at.width.into()) {
            Found::Unknown => None,
            Found::Free => Some(Rule::Free),
            Found::Ruled(list) => {
                for candidate in list {
                    if candidate.width != at.width {
                        continue;
                    }
                    if let Some(when) = candidate.when
                        && self.evaluate(when, frame, &mut Nowhere) == 0
                    {
                        continue;
                    }
                    return Some(candidate.rule.map_or(Rule::Free, |start| Rule::At {
                        start,
                        by_value: candidate.by_value,
                        by_state: candidate.by_state,
                    }));
                }
                None
            }
        }
    }
}

impl<D: Dma> Engine<D> {
    /// A model of a device that was just reset.
    pub fn new(model: Arc<Model>, dma: D) -> Self {
        let mut frame = Frame::new(&model);
        for table in &model.tables {
            frame.set(table.shadow, dma.shadow().wrapping_add(table.offset));
        }
        let reasons = model.denials.iter();
        Self {
            outstanding: model.tables.iter().map(Outstanding::new).collect(),
            lent: false,
            reasons: reasons
                .map(|denial| denial.reason.as_str().into())
                .collect(),
            unknown: "the model does not know this access".into(),
            hooked: 0,
            state: model.key.state(&frame),
            frame,
            dma,
            model,
        }
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Guest memory.
    pub fn dma(&self) -> &D {
        &self.dma
    }

    /// The value of a variable, or the number of a machine's state.
    pub fn variable(&self, name: &str) -> Option<u64> {
        let found = self.model.variables.iter().find(|v| v.name == name)?;
        Some(self.frame.get(found.slot))
    }

    /// How many accesses the model had to see until now: those that changed its state or were denied, and those that a rule decided about
    /// by more than a few bits of state.
    pub fn hooked(&self) -> u64 {
        self.hooked
    }

    /// The guest writes. What the device is to be given, which may be something else.
    ///
    /// # Errors
    ///
    /// It must not reach the device; the model is as before.
    #[inline]
    pub fn write(&mut self, at: At, value: u64, physical: &impl Physical) -> Result<u64, Denied> {
        self.access(Access::Write, at, value, physical)
    }

    /// The guest is about to read. Whether the model wants to see the value that the device gives.
    ///
    /// # Errors
    ///
    /// It must not reach the device.
    #[inline]
    pub fn before_read(&mut self, at: At) -> Result<bool, Denied> {
        match self.model.rule(Access::Read, at, &mut self.frame) {
            Some(rule) => Ok(rule != Rule::Free),
            None => Err(self.unknown()),
        }
    }

    /// The device was read. What the guest is to be given.
    ///
    /// # Errors
    ///
    /// The guest must not see it; the model is as before.
    pub fn after_read(
        &mut self,
        at: At,
        value: u64,
        physical: &impl Physical,
    ) -> Result<u64, Denied> {
        self.access(Access::Read, at, value, physical)
    }

    #[inline]
    fn access(
        &mut self,
        access: Access,
        at: At,
        value: u64,
        physical: &impl Physical,
    ) -> Result<u64, Denied> {
        let Some(rule) = self.model.rule(access, at, &mut self.frame) else {
            return Err(self.unknown());
        };
        let Rule::At {
            start,
            by_value,
            by_state,
        } = rule
        else {
            return Ok(value);
        };
        let table = self.model.table(by_state);
        match table.map_or(Next::Rule, |table| table.next(self.state, value)) {
            Next::Same => return Ok(value),
            Next::State(state) => {
                self.hooked += 1;
                if self.lent {
                    self.give_back(physical);
                }
                self.model.key.enter(state, &mut self.frame);
                self.state = state;
                return Ok(value);
            }
            Next::Rule => {}
        }
        let left = by_value.and_then(|of| self.model.by_value.get(usize::from(of))?.at(value));
        if left.is_some_and(|left| self.model.is_nothing(left)) {
            return Ok(value);
        }
        let start = left.unwrap_or(start);
        self.hooked += 1;
        self.run(start, value, physical)?;
        Ok(self.frame.forward.unwrap_or(value))
    }

    /// The device interrupts. To be called before the guest is told.
    ///
    /// # Errors
    ///
    /// The model does not allow for that; it is as before. The guest may be told all the same.
    pub fn interrupt(&mut self, physical: &impl Physical) -> Result<(), Denied> {
        match self.model.interrupt {
            Some(start) => self.run(start, 0, physical),
            None => {
                self.give_back(physical);
                Ok(())
            }
        }
    }

    /// Time passes: lets the model look at the device, and the guest see what a device wrote that does not interrupt.
    ///
    /// # Errors
    ///
    /// The model does not allow for that; it is as before.
    pub fn timer(&mut self, physical: &impl Physical) -> Result<(), Denied> {
        match self.model.timer {
            Some(start) => self.run(start, 0, physical),
            None => {
                self.give_back(physical);
                Ok(())
            }
        }
    }

    /// Whether the device can be given to somebody else now: nothing is under way that the guest would miss.
    pub fn is_reusable(&mut self, physical: &impl Physical) -> bool {
        let (model, frame, mut live) = self.live(physical);
        let reusable = model.reusable;
        reusable.is_some_and(|reusable| model.evaluate(reusable, frame, &mut live) != 0)
    }

    /// The device was reset.
    pub fn reset(&mut self) {
        for variable in &self.model.variables {
            self.frame.set(variable.slot, variable.initial);
        }
        self.state = self.model.key.state(&self.frame);
        self.clear_shadows();
    }

    /// Carries out the model's `save`: reads what only the device knows.
    pub(crate) fn save_device(&mut self, physical: &impl Physical) -> Result<(), Denied> {
        match self.model.save {
            Some(start) => self.run(start, 0, physical),
            None => Ok(()),
        }
    }

    /// Carries out the model's `restore`: makes the device what the variables say.
    pub(crate) fn restore_device(&mut self, physical: &impl Physical) -> Result<(), Denied> {
        self.clear_shadows();
        match self.model.restore {
            Some(start) => self.run(start, 0, physical),
            None => Ok(()),
        }
    }

    #[inline]
    fn run(&mut self, start: u16, value: u64, physical: &impl Physical) -> Result<(), Denied> {
        if self.lent {
            self.give_back(physical);
        }
        self.frame.begin(value);
        let (model, frame, mut live) = self.live(physical);
        let result = model.run(start, frame, &mut live);
        if let Err(denial) = result {
            self.frame.roll_back();
            return Err(self.denied(denial));
        }
        self.state = self.model.key.state(&self.frame);
        if self.frame.reset {
            self.clear_shadows();
        }
        Ok(())
    }

    #[inline]
    fn live<'a, P: Physical>(
        &'a mut self,
        physical: &'a P,
    ) -> (&'a Model, &'a mut Frame, Live<'a, D, P>) {
        let live = Live {
            model: &self.model,
            dma: &self.dma,
            physical,
            outstanding: &mut self.outstanding,
            lent: &mut self.lent,
        };
        (&self.model, &mut self.frame, live)
    }

    fn give_back(&mut self, physical: &impl Physical) {
        let (model, frame, mut live) = self.live(physical);
        live.give_back(model, frame);
    }

    fn clear_shadows(&mut self) {
        const ZEROES: [u8; 4096] = [0; 4096];
        for outstanding in &mut self.outstanding {
            outstanding.clear();
        }
        self.lent = false;
        for page in 0..self.model.shadow_bytes / 4096 {
            self.dma.write_shadow(page * 4096, &ZEROES);
        }
    }

    #[cold]
    fn denied(&self, number: u16) -> Denied {
        let number = usize::from(number);
        let denial = self.model.denials.get(number);
        Denied {
            policy: denial
                .and_then(|denial| denial.policy)
                .unwrap_or(self.model.policy),
            reason: self.reasons.get(number).unwrap_or(&self.unknown).clone(),
        }
    }

    #[cold]
    fn unknown(&mut self) -> Denied {
        self.hooked += 1;
        Denied {
            policy: self.model.policy,
            reason: self.unknown.clone(),
        }
    }
}
