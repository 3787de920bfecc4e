//! Unmodified guests whose DMA and interrupts go through an emulated IOMMU.

use std::fmt;
use std::fs;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::BootArgs;
use crate::lab::host::Finished;
use crate::progress::Progress;

/// How an IOMMU is offered and used.
struct Mode {
    name: &'static str,
    /// reference-vmm's `--iommu`.
    iommu: &'static str,
    cpus: u8,
    /// More words for the guest's kernel.
    append: &'static str,
    /// What its log must say.
    log: &'static [&'static str],
    /// What `/proc/interrupts` must name.
    interrupts: &'static [&'static str],
    /// Whether accesses to the unit's registers exit; `None` if there is no such unit.
    registers_exit: Option<bool>,
    /// Whether a program in the guest drives the device `edu`.
    edu: bool,
}

/// A VT-d unit, on which the others are variations.
const VTD: Mode = Mode {
    name: "lazy",
    iommu: "vtd",
    cpus: 1,
    append: "intel_iommu=on",
    log: &[
        "DMAR-IR: Enabled IRQ remapping in x2apic mode",
        "policy: lazy mode",
    ],
    interrupts: &["IR-IO-APIC", "IR-PCI-MSIX", "DMAR-MSI"],
    registers_exit: Some(true),
    edu: true,
};

const MODES: [Mode; 6] = [
    VTD,
    Mode {
        name: "sidecore",
        iommu: "vtd,sidecore",
        registers_exit: Some(false),
        // Its faults would be seen and cleared by exits.
        edu: false,
        ..VTD
    },
    Mode {
        name: "sidecore-faults",
        iommu: "vtd,sidecore",
        ..VTD
    },
    Mode {
        name: "strict",
        iommu: "vtd,strict,caching-mode",
        log: &[
            "DMAR-IR: Enabled IRQ remapping in x2apic mode",
            "policy: strict mode",
        ],
        ..VTD
    },
    Mode {
        name: "scalable",
        iommu: "vtd,caching-mode,scalable",
        cpus: 2,
        append: "intel_iommu=on,sm_on",
        log: &[
            "DMAR: Enable scalable mode",
            "DMAR-IR: Enabled IRQ remapping in x2apic mode",
        ],
        ..VTD
    },
    Mode {
        name: "virtio",
        iommu: "virtio",
        cpus: 1,
        append: "",
        log: &["virtio_iommu", "policy: lazy mode"],
        interrupts: &["PCI-MSIX"],
        registers_exit: None,
        // VFIO takes no device whose messages are not remapped.
        edu: false,
    },
];

/// What the log must say in each mode: devices are behind the IOMMU, and in domains that translate.
const TRANSLATED: [&str; 2] = [
    "iommu: Default domain type: Translated",
    "pci 0000:00:01.0: Adding to iommu group",
];

/// What the guest reports of `edu`.
const EDU: [&str; 5] = ["factorial", "dma", "blocked", "intx", "msi"];

/// What a kernel says when something went wrong with an IOMMU.
const FAULTS: [&str; 5] = [
    "handling fault",
    "fault reason",
    "Invalidation Queue Error",
    "timed out",
    "hardware error",
];

/// What is looked at of reference-vmm's report.
#[derive(Deserialize)]
struct Report {
    user: Vec<Exits>,
    buses: Vec<Bus>,
}

#[derive(Deserialize)]
struct Exits {
    count: u64,
}

#[derive(Deserialize)]
struct Bus {
    regions: Vec<Region>,
}

#[derive(Deserialize)]
struct Region {
    name: String,
    reads: u64,
    writes: u64,
}

/// What one guest's use of the IOMMU cost.
#[derive(Debug)]
pub struct Used {
    /// The mode's name.
    pub name: &'static str,
    /// Exits to user space that the unit's registers caused.
    pub register_exits: u64,
    /// All exits to user space.
    pub exits: u64,
    /// How many checks were made.
    pub checks: u64,
}

impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: {} of {}",
            self.name, self.register_exits, self.exits
        )
    }
}

/// The modes' names.
pub fn modes() -> impl Iterator<Item = &'static str> {
    MODES.iter().map(|mode| mode.name)
}

/// Boots a guest in the mode of this `name`, and checks its I/O and its log. Also returns at which attempt it lived.
pub fn run(name: &str, args: &BootArgs, progress: &Progress) -> Result<(Used, u32)> {
    let mode = MODES.iter().find(|mode| mode.name == name);
    let mode = mode.with_context(|| format!("no mode of an IOMMU is called {name}"))?;
    let args = BootArgs {
        iommu: Some(mode.iommu.to_owned()),
        cpus: mode.cpus,
        edu: mode.edu,
        append: format!("{} {}", mode.append, args.append),
        ..args.clone()
    };
    let booted = super::run(&args, &format!("iommu-{name}"), progress)?;
    let used = mode
        .used(&booted.finished)
        .with_context(|| format!("mode {name}, logs in {}", booted.finished.folder.display()))?;
    Ok((used, booted.attempt))
}

impl Mode {
    fn used(&self, finished: &Finished) -> Result<Used> {
        let log: Vec<&str> = finished
            .output
            .lines()
            .filter_map(|line| line.strip_prefix("guest: kernel log: "))
            .collect();
        for expected in TRANSLATED.iter().chain(self.log) {
            if !log.iter().any(|line| line.contains(expected)) {
                bail!(
                    "the kernel does not say `{expected}`, but\n{}",
                    log.join("\n")
                );
            }
        }
        let provoked = if self.edu {
            provoked(&finished.output, &log)?
        } else {
            Vec::new()
        };
        if let Some(line) = log.iter().find(|line| {
            FAULTS.iter().any(|fault| line.contains(fault)) && !provoked.contains(*line)
        }) {
            bail!("the kernel says `{line}`");
        }
        if let Some(missing) = self
            .interrupts
            .iter()
            .find(|kind| !finished.output.contains(*kind))
        {
            bail!("no interrupts of kind {missing}");
        }
        let report: Report =
            serde_json::from_slice(&fs::read(finished.folder.join("exits.json"))?)?;
        let register_exits = report
            .buses
            .iter()
            .flat_map(|bus| &bus.regions)
            .filter(|region| region.name == "VT-d unit")
            .map(|region| region.reads + region.writes)
            .sum::<u64>();
        if self
            .registers_exit
            .is_some_and(|exit| exit != (register_exits > 0))
        {
            bail!("the unit's registers caused {register_exits} exits");
        }
        let exits = report.user.iter().map(|exits| exits.count).sum();
        Ok(Used {
            name: self.name,
            register_exits,
            exits,
            checks: super::CHECKS + self.checks()?,
        })
    }

    /// How many checks [`used`](Self::used) makes: the last two of `edu` are for its faults, the first one for all others.
    fn checks(&self) -> Result<u64> {
        let edu = if self.edu { EDU.len() + 2 } else { 0 };
        let registers = usize::from(self.registers_exit.is_some());
        let count = 1 + TRANSLATED.len() + self.log.len() + self.interrupts.len() + registers + edu;
        Ok(u64::try_from(count)?)
    }
}

/// The lines of the kernel's `log` about the transfers of `edu` that its program had blocked, once it is checked that it did its work.
fn provoked<'a>(output: &str, log: &[&'a str]) -> Result<Vec<&'a str>> {
    for check in EDU {
        let expected = format!("guest: edu {check}: ok");
        if !output.lines().any(|line| line == expected) {
            bail!("the guest does not report `{expected}`");
        }
    }
    let address = output
        .lines()
        .find_map(|line| line.strip_prefix("guest: edu must not reach "))
        .context("the guest does not report where `edu` wrote")?;
    let mut lines: Vec<&str> = Vec::new();
    for direction in ["Read", "Write"] {
        let found = log.iter().find(|line| {
            line.contains(&format!("[DMA {direction} "))
                && line.contains("Request device [00:1e.0]")
                && line.contains(&format!("fault addr {address} "))
        });
        lines.push(found.with_context(|| {
            let log = log.join("\n");
            format!("the kernel reports no fault of edu's DMA {direction} at {address}, but\n{log}")
        })?);
    }
    let handling = log.iter().filter(|line| line.contains("handling fault"));
    lines.extend(handling.take(2));
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: &str = "[1] DMAR: [DMA Read NO_PASID] Request device [00:1e.0] fault addr 0x8bfa000 [fault reason 0x06] x";
    const WRITE: &str = "[1] DMAR: [DMA Write NO_PASID] Request device [00:1e.0] fault addr 0x8bfa000 [fault reason 0x05] x";

    fn output() -> String {
        let mut output = "guest: edu must not reach 0x8bfa000\n".to_owned();
        output.extend(EDU.map(|check| format!("guest: edu {check}: ok\n")));
        output
    }

    #[test]
    fn faults_of_edu_are_expected_in_both_directions_and_no_others() {
        let other = "[2] DMAR: [DMA Read NO_PASID] Request device [00:01.0] fault addr 0x8bfa000 [fault reason 0x06] x";
        let lines = provoked(&output(), &[other, READ, WRITE]).unwrap();
        assert_eq!(lines, [READ, WRITE]);
        let elsewhere = WRITE.replace("0x8bfa000", "0x8bfa0000");
        let device = WRITE.replace("1e.0", "1d.0");
        for log in [&[READ][..], &[WRITE], &[READ, &elsewhere], &[READ, &device]] {
            assert!(provoked(&output(), log).is_err(), "{log:?}");
        }
    }

    #[test]
    fn each_check_of_edu_is_to_be_reported() {
        for check in EDU {
            let output = output().replace(&format!("edu {check}: ok"), "edu");
            assert!(provoked(&output, &[READ, WRITE]).is_err(), "{check}");
        }
    }
}
