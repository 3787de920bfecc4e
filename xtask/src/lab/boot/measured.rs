//! What a boot's logs say about its cost.

use std::fmt;
use std::fs;

use anyhow::{Context, Result};

use super::exits::Exits;
use crate::lab::host::Finished;

/// What was measured while the guest ran.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Measured {
    /// Exits to user space from power-on until the guest's init ran.
    pub exits_to_init: Exits,
    /// Exits to user space from power-on to the end of the guest's work.
    pub exits: Exits,
    /// Hundredths of a second from the VMM's start until the guest's init ran, as the host counts.
    pub init_after_cs: u64,
    /// What the VMM kept in memory beyond the guest's RAM.
    pub resident_kib: u64,
    /// The I/O that the guest was asked to measure.
    pub io: Vec<IoMeasured>,
}

/// What a stretch of I/O cost.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct IoMeasured {
    /// What the guest did.
    pub work: String,
    /// Requests or packets that were completed.
    pub requests: u64,
    /// Exits to user space for MMIO, which is where virtio devices are.
    pub exits: u64,
    /// MMIO writes outside the APIC's page, in the kernel or beyond: kicks, in the main.
    pub writes: u64,
    /// Interrupts of virtio devices that the guest took.
    pub interrupts: u64,
}

impl IoMeasured {
    fn read(finished: &Finished) -> Result<Vec<Self>> {
        let marks = finished.folder.join("marks");
        let marks = if marks.exists() {
            fs::read_to_string(marks)?
        } else {
            String::new()
        };
        finished
            .output
            .lines()
            .filter_map(|line| line.strip_prefix("guest: io ")?.split_once(" ends: "))
            .map(|(work, counts)| {
                Self::of(work, counts, &marks)
                    .with_context(|| format!("the marks of {work} are incomplete"))
            })
            .collect()
    }

    fn of(work: &str, counts: &str, marks: &str) -> Option<Self> {
        let mark = |when: &str| -> Option<(u64, u64)> {
            let start = format!("{work} {when} ");
            let line = marks.lines().find_map(|line| line.strip_prefix(&start))?;
            let (exits, writes) = line.split_once(' ')?;
            Some((exits.parse().ok()?, writes.parse().ok()?))
        };
        let (before, after) = (mark("begins")?, mark("ends")?);
        let (requests, interrupts) = counts.split_once(' ')?;
        Some(Self {
            work: work.to_owned(),
            requests: requests.parse().ok()?,
            exits: after.0.checked_sub(before.0)?,
            writes: after.1.checked_sub(before.1)?,
            interrupts: interrupts.trim().parse().ok()?,
        })
    }
}

impl Measured {
    /// Reads them from the logs of a boot.
    pub fn read(finished: &Finished) -> Result<Self> {
        let line = |start: &str| {
            finished
                .output
                .lines()
                .find_map(|line| line.strip_prefix(start))
                .with_context(|| format!("no line `{start}` in the report"))
        };
        let centiseconds = |text: &str| text.replace('.', "").parse::<u64>();
        let (from, to) = line("host: init seen: ")?
            .split_once(' ')
            .context("two times")?;
        let resident = line("host: resident: ")?
            .split(' ')
            .next()
            .unwrap_or_default();
        Ok(Self {
            exits_to_init: Exits::read(&finished.folder.join("exits-init"))?,
            exits: Exits::read(&finished.folder.join("exits-end"))?,
            init_after_cs: centiseconds(to)?.saturating_sub(centiseconds(from)?),
            resident_kib: resident.parse().context("the VMM's resident memory")?,
            io: IoMeasured::read(finished)?,
        })
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<24} {:>10} {:>10}",
            "exit to user space", "to init", "in all"
        )?;
        for (reason, count) in &self.exits.0 {
            let to_init = self.exits_to_init.0.get(reason).copied().unwrap_or(0);
            writeln!(f, "{reason:<24} {to_init:>10} {count:>10}")?;
        }
        let (to_init, all) = (self.exits_to_init.total(), self.exits.total());
        writeln!(f, "{:<24} {to_init:>10} {all:>10}", "total")?;
        let (seconds, hundredths) = (self.init_after_cs / 100, self.init_after_cs % 100);
        writeln!(
            f,
            "init ran after {seconds}.{hundredths:02} s of the host's time"
        )?;
        write!(
            f,
            "the VMM kept {} KiB beyond the guest's memory",
            self.resident_kib
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_is_the_difference_of_its_marks() {
        let marks = "block begins 10 100\nblock ends 12 1100\n";
        let io = IoMeasured::of("block", "1000 998", marks).unwrap();
        assert_eq!(
            (io.requests, io.exits, io.writes, io.interrupts),
            (1000, 2, 1000, 998)
        );
        assert!(IoMeasured::of("net", "1 1", marks).is_none());
    }
}
