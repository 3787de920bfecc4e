//! What a model is for: one guest, or several.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::Model;
use super::by_state::{ByState, Key};
use super::by_value::{ByValue, shorten};
use super::lookup::Lookup;
use super::program::{Op, Slot};

/// How many guests a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sharing {
    /// One: when the device is reusable, and what it must be told again, matters to nobody.
    Exclusive,
    /// Several, which take turns.
    Shared,
}

impl Model {
    /// The model as an [`Engine`](crate::engine::Engine) for so many guests needs it.
    ///
    /// For one, it is without what is only kept to give the device to another, variables included: it never says that the device is
    /// reusable, and neither saves nor restores. It denies and forwards what the whole model does. For both, registers of one byte
    /// whose rules are about a few bits of state get tables.
    #[must_use]
    pub fn for_sharing(&self, sharing: Sharing) -> Self {
        let mut model = self.clone();
        if sharing == Sharing::Exclusive {
            model.keep_one_guests();
        }
        model.tabulate();
        model
    }

    /// Works out what follows from the rules as they are written.
    pub(super) fn work_out(&mut self) {
        self.ops.truncate(self.written);
        self.by_value.clear();
        let (constants, slots) = (self.constant_slots(), self.variable_slots());
        for register in &mut self.registers {
            register.by_value =
                register
                    .on_write
                    .filter(|_| register.width == 1)
                    .and_then(|start| {
                        let number = u16::try_from(self.by_value.len()).ok()?;
                        let rule = ByValue::append(&mut self.ops, start, &constants, &slots)?;
                        self.by_value.push(rule);
                        Some(number)
                    });
        }
        self.lookups = Lookup::all(self).into();
    }

    /// Whether a rule, or what is left of it for a value, does nothing.
    #[inline]
    pub(crate) fn is_nothing(&self, start: u16) -> bool {
        self.ops.get(usize::from(start)) == Some(&Op::End)
    }

    /// How many bits a variable, or the number of a machine's state, has.
    pub(super) fn bits(&self, slot: Slot) -> Option<u32> {
        let machine = self.machines.iter().find(|machine| machine.slot == slot);
        let last = machine.and_then(|machine| machine.states.len().checked_sub(1));
        let variable = || self.variables.iter().find(|variable| variable.slot == slot);
        last.map_or_else(
            || variable().map(|variable| variable.bits),
            |last| Some(usize::BITS - last.leading_zeros()),
        )
    }

    /// The table of a register, if it has one.
    #[inline]
    pub(crate) fn table(&self, by_state: Option<u16>) -> Option<&ByState> {
        self.by_state.get(usize::from(by_state?))
    }

    fn constant_slots(&self) -> BTreeMap<u64, Slot> {
        let constants = self.constants.iter();
        constants.map(|(slot, number)| (*number, *slot)).collect()
    }

    fn variable_slots(&self) -> BTreeSet<Slot> {
        let variables = self.variables.iter();
        variables.map(|variable| variable.slot).collect()
    }

    fn keep_one_guests(&mut self) {
        (self.reusable, self.save, self.restore) = (None, None, None);
        self.ops.truncate(self.written);
        let constants = self.constant_slots();
        loop {
            // A rule that loses what it sets may not look at something else any more.
            let live = self.live(Sharing::Exclusive);
            self.variables
                .retain(|variable| live.contains(&variable.slot));
            self.machines.retain(|machine| live.contains(&machine.slot));
            let slots = self.variable_slots();
            let mut lost = false;
            for start in self.rules().collect::<Vec<_>>() {
                lost |= self.lose_sets(start, &live);
                shorten(&mut self.ops, start, &constants, &slots);
            }
            if !lost {
                break;
            }
        }
        self.interrupt = self.interrupt.filter(|start| !self.is_nothing(*start));
        self.timer = self.timer.filter(|start| !self.is_nothing(*start));
        self.work_out();
    }

    /// Whether a rule sets what nothing looks at; it no longer does.
    fn lose_sets(&mut self, start: u16, live: &BTreeSet<Slot>) -> bool {
        let mut lost = false;
        let rule = self.ops.iter_mut().zip(1_u16..).skip(start.into());
        for (op, next) in rule.take_while(|(op, _)| **op != Op::End) {
            if let Op::Set { to, .. } = *op
                && !live.contains(&to)
            {
                *op = Op::Jump(next);
                lost = true;
            }
        }
        lost
    }

    fn tabulate(&mut self) {
        let mut rules: Vec<(usize, u16, u32)> = Vec::new();
        for (index, register) in self.registers.iter().enumerate() {
            if let Some(start) = register.on_write.filter(|_| register.width == 1)
                && let Some(key) = Key::default().with_rule(self, start)
            {
                rules.push((index, start, key.bits()));
            }
        }
        // Whatever looks at less than others mostly looks at the same.
        rules.sort_by_key(|(_, _, bits)| Reverse(*bits));
        rules.retain(|(_, start, _)| match self.key.with_rule(self, *start) {
            Some(key) => {
                self.key = key;
                true
            }
            None => false,
        });
        let mut work = 0;
        for (index, start, _) in rules {
            let register = self.registers.get(index);
            let by_value = register.and_then(|register| register.by_value);
            let by_value = by_value.and_then(|at| self.by_value.get(usize::from(at)));
            if let Ok(number) = u16::try_from(self.by_state.len())
                && let Some(table) = ByState::of(self, &self.key, start, by_value, &mut work)
                && let Some(register) = self.registers.get_mut(index)
            {
                register.by_state = Some(number);
                self.by_state.push(table);
            }
        }
        self.lookups = Lookup::all(self).into();
    }
}
