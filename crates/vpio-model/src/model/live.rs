//! Which variables matter: those that some decision depends on.

use std::collections::{BTreeMap, BTreeSet};

use super::program::{Code, Op, Slot};
use super::{Model, Sharing};

impl Model {
    /// The ops of a rule, which end with the first [`Op::End`].
    pub(crate) fn rule_ops(&self, start: u16) -> impl Iterator<Item = &Op> {
        let ops = self.ops.iter().skip(start.into());
        ops.take_while(|op| **op != Op::End)
    }

    /// The starts of all rules for events.
    pub(crate) fn rules(&self) -> impl Iterator<Item = u16> + '_ {
        let accesses = self
            .registers
            .iter()
            .flat_map(|register| [register.on_read, register.on_write]);
        let others = [self.interrupt, self.timer];
        accesses.chain(others).flatten()
    }

    fn expressions(&self, sharing: Sharing) -> Vec<Code> {
        let banks = self.registers.iter().filter_map(|register| register.when);
        let mut codes: Vec<Code> = banks.collect();
        for transfer in &self.transfers {
            codes.extend([transfer.address, transfer.length]);
            // What the device does on its own is the checker's affair.
            codes.extend((sharing == Sharing::Shared).then_some(transfer.active));
        }
        for table in &self.tables {
            codes.extend(table.at.iter().flat_map(|(base, count)| [*base, *count]));
            codes.extend(table.buffers.iter().map(|buffer| buffer.length));
            codes.extend(table.buffers.iter().filter_map(|buffer| buffer.condition));
            codes.extend(table.follow.iter().map(|follow| follow.count));
            let tests = [table.during, table.last, table.wrap, table.done];
            codes.extend(tests.into_iter().flatten());
        }
        if sharing == Sharing::Shared {
            codes.extend(self.reusable);
        }
        codes
    }

    /// The slots of the variables that some decision depends on.
    pub(crate) fn live(&self, sharing: Sharing) -> BTreeSet<Slot> {
        let mut live = BTreeSet::new();
        let mut feeds: Vec<(Slot, BTreeSet<Slot>)> = Vec::new();
        for code in self.expressions(sharing) {
            let flow = Flow::of(self.rule_ops(code.start));
            live.extend(flow.sources(code.result));
            live.extend(flow.decisive);
        }
        let switching = [self.save, self.restore].into_iter().flatten();
        let switching = switching.filter(|_| sharing == Sharing::Shared);
        for start in self.rules().chain(switching) {
            let flow = Flow::of(self.rule_ops(start));
            live.extend(flow.decisive);
            feeds.extend(flow.sets);
        }
        loop {
            let before = live.len();
            for (to, from) in &feeds {
                if live.contains(to) {
                    live.extend(from);
                }
            }
            if live.len() == before {
                return live;
            }
        }
    }
}

/// Where a rule's numbers come from.
#[derive(Default)]
struct Flow {
    temporary: BTreeMap<Slot, BTreeSet<Slot>>,
    /// What jumps, denials, checks and registers depend on.
    decisive: BTreeSet<Slot>,
    /// What assignments depend on.
    sets: Vec<(Slot, BTreeSet<Slot>)>,
}

impl Flow {
    fn of<'a>(ops: impl Iterator<Item = &'a Op>) -> Self {
        let mut flow = Self::default();
        for op in ops {
            flow.add(*op);
        }
        flow
    }

    /// What a slot depends on: itself, or, if it is temporary, whatever it was computed of.
    fn sources(&self, slot: Slot) -> BTreeSet<Slot> {
        let own = || BTreeSet::from([slot]);
        self.temporary.get(&slot).cloned().unwrap_or_else(own)
    }

    fn add(&mut self, op: Op) {
        let sources: BTreeSet<Slot> = op.reads().flat_map(|slot| self.sources(slot)).collect();
        match op {
            Op::Set { to, .. } => self.sets.push((to, sources)),
            _ => match op.computes() {
                Some(to) => self.temporary.entry(to).or_default().extend(sources),
                None => self.decisive.extend(sources),
            },
        }
    }
}
