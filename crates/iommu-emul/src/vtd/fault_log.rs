use pio_mmio_bus::interrupt::MsiMessage;
use serde::{Deserialize, Serialize};

use super::event::Event;
use crate::spec::{
    fault::FaultRecord,
    register::{FSTS_FRI_SHIFT, FaultStatus},
};

/// The fault recording registers, the fault status register and the fault event (§7.3, §7.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FaultLog {
    records: Vec<FaultRecord>,
    /// Where the next fault goes.
    next: u16,
    /// FRI: where the first of the pending faults is.
    first: u16,
    /// The status bits but PPF, which follows from the records.
    status: u32,
    pub event: Event,
}

impl FaultLog {
    pub fn new(records: u16) -> Self {
        Self {
            records: vec![FaultRecord::default(); records.into()],
            next: 0,
            first: 0,
            status: 0,
            event: Event::new(),
        }
    }

    fn sticky(&self) -> FaultStatus {
        FaultStatus::from_bits_truncate(self.status)
    }

    fn flags(&self) -> FaultStatus {
        let mut flags = self.sticky();
        flags.set(
            FaultStatus::PPF,
            self.records.iter().any(|record| record.pending()),
        );
        flags
    }

    /// The fault status register.
    pub fn status(&self) -> u32 {
        self.flags().bits() | u32::from(self.first) << FSTS_FRI_SHIFT
    }

    /// Whether the invalidation queue has stopped at an error.
    pub fn queue_stopped(&self) -> bool {
        self.sticky().contains(FaultStatus::IQE)
    }

    /// Records a fault; the fault event's message if it is due. After an overflow nothing is recorded until the guest clears it
    /// (§7.3.1).
    pub fn record(&mut self, fault: FaultRecord) -> Option<MsiMessage> {
        let before = self.flags();
        if before.contains(FaultStatus::PFO) {
            return None;
        }
        let count = self.records.len();
        match self.records.get_mut(usize::from(self.next)) {
            Some(record) if !record.pending() => {
                *record = fault;
                if !before.contains(FaultStatus::PPF) {
                    self.first = self.next;
                }
                self.next = if usize::from(self.next) + 1 < count {
                    self.next + 1
                } else {
                    0
                };
            }
            _ => self.status |= FaultStatus::PFO.bits(),
        }
        self.raise_after(before)
    }

    /// Sets a status bit of the invalidation queue; the fault event's message if it is due.
    pub fn set(&mut self, status: FaultStatus) -> Option<MsiMessage> {
        let before = self.flags();
        self.status |= status.bits();
        self.raise_after(before)
    }

    /// A status bit that is set while another is makes no new event (§7.4).
    fn raise_after(&mut self, before: FaultStatus) -> Option<MsiMessage> {
        if before.is_empty() {
            self.event.raise()
        } else {
            None
        }
    }

    /// Writes the fault status register: 1 clears.
    pub fn clear_status(&mut self, value: u32) {
        self.status &= !value;
        self.settle();
    }

    /// The 64-bit word `index` of the fault recording registers.
    pub fn read(&self, index: u16) -> u64 {
        let words = self.records.get(usize::from(index / 2));
        match words {
            Some(FaultRecord([low, _])) if index.is_multiple_of(2) => *low,
            Some(FaultRecord([_, high])) => *high,
            None => 0,
        }
    }

    /// Clears the fault of a record.
    pub fn clear_record(&mut self, record: u16) {
        if let Some(record) = self.records.get_mut(usize::from(record)) {
            record.0[1] &= !FaultRecord::FAULT;
        }
        self.settle();
    }

    fn settle(&mut self) {
        if self.flags().is_empty() {
            self.event.withdraw();
        }
    }

    /// Whether hardware with `records` registers can be in this state.
    pub fn valid(&self, records: u16) -> bool {
        let Self {
            records: held,
            next,
            first,
            status,
            event,
        } = self;
        held.len() == usize::from(records)
            && held.iter().all(|record| record.valid())
            && *next < records
            && *first < records
            && FaultStatus::from_bits(*status)
                .is_some_and(|status| !status.contains(FaultStatus::PPF))
            && event.valid()
    }
}
