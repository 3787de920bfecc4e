//! Exits to user space, counted and timed.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// Why a vCPU came to user space (Linux, `KVM_EXIT_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitKind {
    /// Read of a port.
    PortRead,
    /// Write to a port.
    PortWrite,
    /// Read of an address that is not RAM.
    MemoryRead,
    /// Write to an address that is not RAM.
    MemoryWrite,
    /// A halt that the in-kernel APIC did not take.
    Halt,
    /// Access to a model-specific register.
    Msr,
    /// A hypercall.
    Hypercall,
    /// The end of a level-triggered interrupt of an I/O APIC in user space.
    EndOfInterrupt,
    /// A signal for the thread.
    Interrupted,
    /// An event of the whole system, such as a crash.
    SystemEvent,
    /// The processor shut down.
    Shutdown,
    /// Anything else.
    Other,
}

impl ExitKind {
    /// All kinds, in the order of the reports.
    pub const ALL: [Self; 12] = [
        Self::PortRead,
        Self::PortWrite,
        Self::MemoryRead,
        Self::MemoryWrite,
        Self::Halt,
        Self::Msr,
        Self::Hypercall,
        Self::EndOfInterrupt,
        Self::Interrupted,
        Self::SystemEvent,
        Self::Shutdown,
        Self::Other,
    ];
}

impl fmt::Display for ExitKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::PortRead => "port read",
            Self::PortWrite => "port write",
            Self::MemoryRead => "MMIO read",
            Self::MemoryWrite => "MMIO write",
            Self::Halt => "HLT",
            Self::Msr => "MSR",
            Self::Hypercall => "hypercall",
            Self::EndOfInterrupt => "end of interrupt",
            Self::Interrupted => "interrupted",
            Self::SystemEvent => "system event",
            Self::Shutdown => "shutdown",
            Self::Other => "other",
        })
    }
}

/// How often each kind of exit happened on some vCPUs, and the time their handling took in user space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitCounts {
    rows: [(u64, Duration); ExitKind::ALL.len()],
}

impl ExitCounts {
    /// Counts one exit that took `time` from the return of `KVM_RUN` until its next call, zero if nobody measures.
    pub fn record(&mut self, kind: ExitKind, time: Duration) {
        if let Some((count, total)) = self.rows.get_mut(kind as usize) {
            *count = count.saturating_add(1);
            *total = total.saturating_add(time);
        }
    }

    /// Adds the counts of another vCPU.
    pub fn merge(&mut self, other: &Self) {
        for (row, other) in self.rows.iter_mut().zip(other.rows) {
            row.0 = row.0.saturating_add(other.0);
            row.1 = row.1.saturating_add(other.1);
        }
    }

    /// The kinds that happened, with number and time.
    pub fn iter(&self) -> impl Iterator<Item = (ExitKind, u64, Duration)> {
        ExitKind::ALL
            .into_iter()
            .zip(self.rows)
            .filter(|(_, (count, _))| *count > 0)
            .map(|(kind, (count, time))| (kind, count, time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_the_kinds() {
        for (index, kind) in ExitKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
        let mut counts = ExitCounts::default();
        let second = Duration::from_secs(1);
        counts.record(ExitKind::Msr, second);
        let mut sum = counts;
        sum.merge(&counts);
        assert_eq!(
            sum.iter().collect::<Vec<_>>(),
            [(ExitKind::Msr, 2, 2 * second)]
        );
    }
}
