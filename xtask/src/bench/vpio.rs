//! What models of devices have to see, take and cost, beside the figures of "Virtual Passthrough I/O" (Xia, Lange and Dinda, WIOV'08); and
//! their state machines, drawn, with their hooks.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::{Section, criterion};
use crate::lab::kernel_source;
use crate::lab::vpio::{self, Use};
use crate::process;
use crate::progress::Progress;
use crate::workspace;

/// Of an NE2000 under Linux in the paper, in the order of [`vpio::PHASES`]: what it did, accesses, those hooked, and the share of these in
/// percent that is to be reached.
const PAPER: [(&str, u64, u64, f64); 3] = [
    ("session", 1_865_055, 257_324, 8.0),
    ("small download", 2_602_002, 69_700, 2.5),
    ("large download", 294_508_810, 9_429_917, 2.0),
];
/// An update in the paper, and what is to be reached, in cycles.
const PAPER_UPDATE: u32 = 100;
const WANTED_UPDATE: u32 = 40;

/// A model, by its file, and what drives the same device in Linux.
struct Known {
    file: &'static str,
    device: &'static str,
    /// Files and folders of the kernel's source, below `drivers`.
    driver: &'static [&'static str],
}

const MODELS: [Known; 6] = [
    Known {
        file: "ne2000",
        device: "NE2000",
        driver: &[
            "net/ethernet/8390/ne2k-pci.c",
            "net/ethernet/8390/lib8390.c",
            "net/ethernet/8390/8390.h",
        ],
    },
    Known {
        file: "rtl8139",
        device: "RTL8139",
        driver: &["net/ethernet/realtek/8139too.c"],
    },
    Known {
        file: "rtl8139cp",
        device: "RTL8139C+",
        driver: &["net/ethernet/realtek/8139cp.c"],
    },
    Known {
        file: "e1000",
        device: "82540EM",
        driver: &["net/ethernet/intel/e1000"],
    },
    Known {
        file: "ahci",
        device: "AHCI",
        driver: &["ata/ahci.c", "ata/libahci.c", "ata/ahci.h"],
    },
    Known {
        file: "piix-bmide",
        device: "PIIX IDE bus master",
        driver: &["ata/ata_piix.c", "ata/libata-sff.c"],
    },
];

/// What ne2k-pci did with its card.
#[derive(Debug, Serialize)]
struct Phase {
    accesses: u64,
    hooked: u64,
    exits: u64,
}

/// One update, or an access that makes none.
#[derive(Debug, Serialize)]
struct Cost {
    name: String,
    instructions: f64,
    cycles: f64,
}

/// Lines of the model and of the driver, comments and all.
#[derive(Debug, Serialize)]
struct Size {
    model: usize,
    driver: usize,
}

#[derive(Debug, Serialize)]
struct Figures {
    /// In the order of [`vpio::PHASES`].
    phases: Vec<Phase>,
    /// What all drivers did in the lab's scenario.
    drivers: Vec<Use>,
    updates: Vec<Cost>,
    /// An access that needs no model, through the bus, behind one and not.
    unhooked: [Cost; 2],
    /// In the order of [`MODELS`].
    sizes: Vec<Size>,
}

/// Measures, and writes the book's page, and what the pages of the models show.
pub fn measure(progress: &Progress) -> Result<Section> {
    let sizes = MODELS.iter().map(Size::count).collect::<Result<_>>()?;
    let (updates, unhooked) = costs(progress)?;
    let phases = vpio::phases(progress)?
        .into_iter()
        .map(|[accesses, hooked, exits]| Phase {
            accesses,
            hooked,
            exits,
        });
    let figures = Figures {
        phases: phases.collect(),
        drivers: vpio::run(progress)?.0,
        updates,
        unhooked,
        sizes,
    };
    let text = figures.to_string();
    let book = workspace::root()?.join("docs/src");
    let mut page = text.replacen("## ", "# ", 1).replace("\n### ", "\n## ");
    page.push_str(MACHINES);
    for Known { file, device, .. } in &MODELS {
        for (args, to) in [
            (&["graph", "--svg"][..], format!("figures/model-{file}.svg")),
            (&["hooks"][..], format!("models/{file}.hooks")),
        ] {
            let mut vpio = workspace::cargo()?;
            vpio.args(["run", "--quiet", "--release", "-p", "vpio-model"]);
            vpio.args(["--features", "bin", "--bin", "vpio", "--"]);
            fs::write(
                book.join(to),
                process::output(vpio.args(args).arg(model(file)?))?,
            )?;
        }
        page += &format!("- [{device}](models/{file}.md)\n");
    }
    fs::write(book.join("models.md"), page)?;
    Section::new(&figures, text)
}

const MACHINES: &str = "\n## What models know\n\n\
    For each model a page: its states, as `vpio graph --svg FILE` draws them with all that the checker found to lead from one to another; why it \
    is safe; and which accesses it has to see, as `vpio hooks FILE` tells.\n\n";

fn model(file: &str) -> Result<std::path::PathBuf> {
    let models = workspace::root()?.join("crates/vpio-model/models");
    Ok(models.join(file).with_extension("vpio"))
}

/// What updates cost, and an access through the bus with a model and without.
fn costs(progress: &Progress) -> Result<(Vec<Cost>, [Cost; 2])> {
    progress.note("what updates cost");
    let frequency = cycles_per_nanosecond()?;
    let measured = criterion::run(&["-p", "vpio-model", "--bench", "update"])?;
    let mut medians = HashMap::new();
    for one in measured {
        let (group, name) = one.name.split_once('/').context("no group")?;
        let updates = if group == "two updates" { 2.0 } else { 1.0 };
        medians.insert(name.to_owned(), one.median_ns / updates);
    }
    let mut bench = workspace::cargo()?;
    bench.args(["bench", "--quiet", "-p", "vpio-model"]);
    let counted = process::output_text(bench.args(["--bench", "instructions"]))?;
    let mut costs = Vec::new();
    // `NAME COUNT, recorded COUNT`
    for line in counted.lines() {
        let counts = line
            .split_once(',')
            .and_then(|(row, _)| row.rsplit_once(' '));
        let (name, count) = counts.with_context(|| counted.clone())?;
        let name = name.trim_end().to_owned();
        let median = medians.get(&name).with_context(|| name.clone())?;
        costs.push(Cost {
            instructions: count.parse()?,
            cycles: (median * frequency).round(),
            name,
        });
    }
    let unhooked = costs.split_off(costs.len().saturating_sub(2));
    let unhooked = unhooked.try_into().ok().context("two accesses")?;
    Ok((costs, unhooked))
}

/// As the kernel says.
fn cycles_per_nanosecond() -> Result<f64> {
    let text = fs::read_to_string("/proc/cpuinfo")?;
    let mut lines = text.lines().filter(|line| line.starts_with("cpu MHz"));
    let megahertz = lines.next().and_then(|line| line.rsplit_once(':'));
    let (_, megahertz) = megahertz.context("/proc/cpuinfo tells no frequency")?;
    Ok(megahertz.trim().parse::<f64>()? / 1000.0)
}

impl Size {
    fn count(of: &Known) -> Result<Self> {
        let driver = of.driver.iter().map(|path| {
            let source = kernel_source::part(&format!("drivers/{path}"))?;
            lines(&source)
        });
        Ok(Self {
            model: lines(&model(of.file)?)?,
            driver: driver.sum::<Result<_>>()?,
        })
    }
}

/// Of a file, or of all of C in a folder.
fn lines(path: &Path) -> Result<usize> {
    if !path.is_dir() {
        return Ok(fs::read_to_string(path)?.lines().count());
    }
    let mut all = 0;
    for entry in fs::read_dir(path)? {
        let path = entry?.path();
        if path.extension().is_some_and(|is| is == "c" || is == "h") {
            all += lines(&path)?;
        }
    }
    Ok(all)
}

/// In percent.
#[expect(
    clippy::cast_precision_loss,
    reason = "nobody reads the sixteenth digit"
)]
fn share(part: u64, of: u64) -> f64 {
    100.0 * part as f64 / of.max(1) as f64
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "## Devices behind models\n\n\
             Written by `cargo xtask bench vpio`; do not edit. The paper is \"Virtual Passthrough I/O\" (Xia, Lange and Dinda, WIOV'08), in which \
             QEMU 0.9.1 counted what Linux does with an emulated NE2000. Here Debian's drivers use devices of an emulated host, which has them \
             from QEMU, through that host's KVM and VFIO: counts are real, times of that host are not and are not given.\n\n\
             ### What the model of an NE2000 has to see\n\n\
             An access is one element of a string instruction, or one of any other; it is hooked if the model has to see it. The paper's \
             session is one of ssh, ours 20 packets of 98 bytes there and back; a small download is 16 KiB here, a large one 1 MiB, by HTTP. Each \
             was a boot of its own, and what the driver does in a boot without any of them is not counted. Exits are to user space: a string \
             instruction takes fewer than it has elements.\n\n\
             | | paper: accesses | hooked | share | here: accesses | hooked | share | wanted | exits |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|---:|"
        )?;
        for ((name, accesses, hooked, wanted), here) in PAPER.iter().zip(&self.phases) {
            let (paper, ours) = (share(*hooked, *accesses), share(here.hooked, here.accesses));
            writeln!(
                f,
                "| {name} | {accesses} | {hooked} | {paper:.2} % | {} | {} | {ours:.2} % | ≤ {wanted:.1} % | {} |",
                here.accesses, here.hooked, here.exits
            )?;
        }
        writeln!(
            f,
            "\n### All devices of the lab\n\n\
             In `cargo xtask lab models` one guest starts all drivers, holds the session and makes both downloads over each network card, and makes \
             a file system and a file of 2 MiB on the disk.\n\n\
             | model | accesses | hooked | share | denied |\n|---|---:|---:|---:|---:|"
        )?;
        for of in &self.drivers {
            let share = share(of.hooked, of.accesses);
            writeln!(
                f,
                "| {} | {} | {} | {share:.2} % | {} |",
                of.model, of.accesses, of.hooked, of.denied
            )?;
        }
        writeln!(
            f,
            "\n### What an update takes\n\n\
             One update of the model by a write that its driver makes all the time: about {PAPER_UPDATE} cycles in the paper, at most {WANTED_UPDATE} \
             wanted here. Instructions are counted by valgrind and are the same each time; cycles are criterion's median at the frequency that \
             the kernel tells, and more where something else runs on the machine. Of the NE2000's CR, the first write begins remote DMA, which \
             changes nothing of what one guest needs; the others show another page of registers, with one guest and with several.\n\n\
             | model and register | instructions | cycles |\n|---|---:|---:|"
        )?;
        for of in &self.updates {
            let Cost { name, .. } = of;
            writeln!(f, "| {name} | {:.0} | {:.0} |", of.instructions, of.cycles)?;
        }
        writeln!(
            f,
            "\nAn access that the model does not have to see, of a data port, through the bus of `pio-mmio-bus`:\n\n\
             | | instructions | cycles |\n|---|---:|---:|"
        )?;
        for of in &self.unhooked {
            let Cost { name, .. } = of;
            writeln!(f, "| {name} | {:.0} | {:.0} |", of.instructions, of.cycles)?;
        }
        writeln!(
            f,
            "\n### How long models are\n\n\
             Lines of the model and of what drives the device in Linux 6.1, comments and all; a fifth is wanted at most.\n\n\
             | device | model | driver | ratio | driver's files |\n|---|---:|---:|---:|---|"
        )?;
        for (of, Size { model, driver }) in MODELS.iter().zip(&self.sizes) {
            let ratio = share(
                u64::try_from(*model).unwrap_or(0),
                u64::try_from(*driver).unwrap_or(0),
            );
            let names = of
                .driver
                .iter()
                .map(|path| path.rsplit('/').next().unwrap_or(path));
            let names: Vec<&str> = names.collect();
            writeln!(
                f,
                "| {} | {model} | {driver} | {ratio:.0} % | {} |",
                of.device,
                names.join(", ")
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_of_what_was_counted() {
        let cost = |name: &str| Cost {
            name: name.to_owned(),
            instructions: 123.4,
            cycles: 56.0,
        };
        let figures = Figures {
            phases: vec![Phase {
                accesses: 1000,
                hooked: 15,
                exits: 99,
            }],
            drivers: vec![Use {
                model: "ahci".to_owned(),
                accesses: 200,
                hooked: 3,
                denied: 1,
            }],
            updates: vec![cost("one")],
            unhooked: [cost("with"), cost("without")],
            sizes: vec![Size {
                model: 100,
                driver: 2000,
            }],
        };
        let text = figures.to_string();
        for row in [
            "| session | 1865055 | 257324 | 13.80 % | 1000 | 15 | 1.50 % | ≤ 8.0 % | 99 |",
            "| ahci | 200 | 3 | 1.50 % | 1 |",
            "| one | 123 | 56 |",
            "| without | 123 | 56 |",
            "| NE2000 | 100 | 2000 | 5 % | ne2k-pci.c, lib8390.c, 8390.h |",
        ] {
            assert!(text.contains(row), "{text}");
        }
    }

    #[test]
    fn a_folder_has_the_lines_of_its_c() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [("a.c", "1\n2\n"), ("a.h", "3\n"), ("Makefile", "4\n")] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        assert_eq!(lines(folder.path()).unwrap(), 3);
        assert_eq!(lines(&folder.path().join("a.h")).unwrap(), 1);
    }
}
