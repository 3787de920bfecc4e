//! Giving frames away.

use super::{Caller, Domain};
use crate::spec::grant::{Refusal, Transfer};

impl Caller<'_> {
    /// Gives frames away. Where that fails the frame is lost nevertheless, unless the status is [`Refusal::BadPage`].
    pub fn transfer(&self, operations: &mut [Transfer]) {
        for op in operations {
            op.status = Refusal::status(self.transfer_one(op));
        }
    }

    fn transfer_one(&self, op: &Transfer) -> Result<(), Refusal> {
        let frame = self.domain.memory.take(op.frame)?;
        self.domain.memory.flush();
        let taker = self.hypervisor.find(op.domain).ok_or(Refusal::BadDomain)?;
        if taker.is_dying() {
            return Err(Refusal::General);
        }
        let given = taker.memory.give(frame, &mut || self.commit(&taker, op));
        if !given {
            return Err(Refusal::General);
        }
        taker.table().complete_transfer(op.reference);
        Ok(())
    }

    /// Commits the entry; where its domain wants the frame.
    fn commit(&self, taker: &Domain, op: &Transfer) -> Option<u64> {
        let table = taker.table();
        let mut records = table.records();
        records.get(op.reference)?;
        table.commit_transfer(op.reference, self.domain.id).ok()?;
        drop(records);
        table.entries().frame(op.reference)
    }
}
