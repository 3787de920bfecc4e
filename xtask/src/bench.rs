//! The benchmarks: criterion's, and the lab's comparison of VMMs, as a table, JSON and a page of
//! the book.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Parser as _};
use serde::{Deserialize, Serialize};

use crate::lab::boot::{self, BootArgs, Measured, Vmm};
use crate::process;
use crate::progress::Progress;
use crate::workspace;

/// What to measure.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Leave out the lab's comparisons
    #[arg(long)]
    no_lab: bool,
    /// Leave out the crates' benchmarks
    #[arg(long)]
    no_criterion: bool,
}

/// All figures of one run.
#[derive(Debug, Serialize)]
struct Figures {
    benchmarks: Vec<Benchmark>,
    boots: Vec<Boot>,
}

/// One of criterion's benchmarks.
#[derive(Debug, Serialize)]
struct Benchmark {
    name: String,
    median_ns: f64,
}

/// One VMM in the lab.
#[derive(Debug, Serialize)]
struct Boot {
    vmm: String,
    #[serde(flatten)]
    measured: Measured,
}

/// A `boot` command line without flags.
#[derive(clap::Parser)]
struct Defaults {
    #[command(flatten)]
    args: BootArgs,
}

/// Measures, prints the table, and writes `target/bench.json` and the book's page.
pub fn bench(args: &BenchArgs) -> Result<()> {
    let benchmarks = if args.no_criterion {
        Vec::new()
    } else {
        criterion()?
    };
    let boots = if args.no_lab { Vec::new() } else { boots()? };
    let figures = Figures { benchmarks, boots };
    print!("{figures}");
    let json = workspace::target()?.join("bench.json");
    fs::write(&json, serde_json::to_string_pretty(&figures)?)?;
    let page = workspace::root()?.join("docs/src/performance.md");
    fs::write(&page, format!("{PREFACE}{figures}"))?;
    println!("\nwritten: {}, {}", json.display(), page.display());
    Ok(())
}

const PREFACE: &str = "# Performance\n\nWritten by `cargo xtask bench`; do not edit. A benchmark's peer is in the same run. \
     Times are medians on the machine that ran it; what can be compared are the rows of one table.\n\n";

fn criterion() -> Result<Vec<Benchmark>> {
    let results = workspace::target()?.join("criterion");
    if results.exists() {
        fs::remove_dir_all(&results)?;
    }
    // The bench targets alone: the libraries have none, and would not take criterion's options.
    let mut bench = workspace::cargo()?;
    bench.args(["bench", "--workspace", "--bench", "*", "--"]);
    process::run(bench.args(["--warm-up-time", "1", "--measurement-time", "2"]))?;
    let mut benchmarks = Vec::new();
    if results.exists() {
        collect(&results, &mut benchmarks)?;
    }
    benchmarks.sort_by(|a: &Benchmark, b| a.name.cmp(&b.name));
    Ok(benchmarks)
}

/// Finds each `new/benchmark.json` and `new/estimates.json` below `folder`.
fn collect(folder: &Path, into: &mut Vec<Benchmark>) -> Result<()> {
    #[derive(Deserialize)]
    struct Id {
        full_id: String,
    }
    #[derive(Deserialize)]
    struct Estimates {
        median: Estimate,
    }
    #[derive(Deserialize)]
    struct Estimate {
        point_estimate: f64,
    }
    let new = folder.join("new");
    if new.join("benchmark.json").exists() {
        let read = |file: &str| {
            fs::read(new.join(file)).with_context(|| format!("{file} of {}", new.display()))
        };
        let id: Id = serde_json::from_slice(&read("benchmark.json")?)?;
        let estimates: Estimates = serde_json::from_slice(&read("estimates.json")?)?;
        into.push(Benchmark {
            name: id.full_id,
            median_ns: estimates.median.point_estimate,
        });
        return Ok(());
    }
    let mut below: Vec<PathBuf> = fs::read_dir(folder)?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .collect();
    below.retain(|path| path.is_dir());
    below.iter().try_for_each(|path| collect(path, into))
}

fn boots() -> Result<Vec<Boot>> {
    let vmms = [Vmm::Reference, Vmm::Microvm, Vmm::Q35];
    let mut args = Defaults::try_parse_from(["boot"])?.args;
    args.bound = 600;
    let measured = boot::compare(&args, &vmms, &Progress::new("bench"))?;
    let name = |vmm: &Vmm| vmm.to_string();
    Ok(vmms
        .iter()
        .map(name)
        .zip(measured)
        .map(|(vmm, measured)| Boot { vmm, measured })
        .collect())
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.benchmarks.is_empty() {
            writeln!(f, "## The crates\n\n| benchmark | median |\n|---|---:|")?;
            for Benchmark { name, median_ns } in &self.benchmarks {
                writeln!(f, "| {name} | {} |", duration(*median_ns))?;
            }
        }
        if self.boots.is_empty() {
            return Ok(());
        }
        writeln!(f, "\n## A whole boot\n")?;
        writeln!(
            f,
            "The same Debian guest, one after the other in one emulated host. Exits are those to user space, from power-on \
             to the guest's init and to the end of its work; time is the host's, to init, and means something only as a ratio.\n"
        )?;
        writeln!(
            f,
            "| VMM | exits to init | exits in all | time to init | memory beyond the guest's |"
        )?;
        writeln!(f, "|---|---:|---:|---:|---:|")?;
        for Boot { vmm, measured } in &self.boots {
            let (to_init, all) = (measured.exits_to_init.total(), measured.exits.total());
            let time = duration_cs(measured.init_after_cs);
            writeln!(
                f,
                "| {vmm} | {to_init} | {all} | {time} | {} KiB |",
                measured.resident_kib
            )?;
        }
        writeln!(f, "\n## I/O in the guest\n")?;
        writeln!(
            f,
            "Block: 4 KiB direct reads. Exits are those to user space for MMIO; kicks are MMIO writes, in the kernel or beyond; \
             all per request, or per packet received.\n"
        )?;
        writeln!(f, "| work | VMM | requests | exits | kicks | interrupts |")?;
        writeln!(f, "|---|---|---:|---:|---:|---:|")?;
        for Boot { vmm, measured } in &self.boots {
            for io in &measured.io {
                write!(f, "| {} | {vmm} | {}", io.work, io.requests)?;
                for count in [io.exits, io.writes, io.interrupts] {
                    write!(f, " | {}", per(count, io.requests))?;
                }
                writeln!(f, " |")?;
            }
        }
        Ok(())
    }
}

/// `count` for each of `requests`, to two decimals.
fn per(count: u64, requests: u64) -> String {
    match (count * 100).checked_div(requests) {
        Some(hundredths) => format!("{}.{:02}", hundredths / 100, hundredths % 100),
        None => "–".to_owned(),
    }
}

fn duration_cs(centiseconds: u64) -> String {
    format!("{}.{:02} s", centiseconds / 100, centiseconds % 100)
}

fn duration(ns: f64) -> String {
    match ns {
        ns if ns < 1e3 => format!("{ns:.2} ns"),
        ns if ns < 1e6 => format!("{:.2} µs", ns / 1e3),
        ns => format!("{:.2} ms", ns / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_readable() {
        assert_eq!(per(1, 3), "0.33");
        assert_eq!(per(1, 0), "–");
        assert_eq!(duration(12.5), "12.50 ns");
        assert_eq!(duration(12_500.0), "12.50 µs");
    }
}
