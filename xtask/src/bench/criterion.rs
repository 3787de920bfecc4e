//! The crates' own benchmarks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::Section;
use crate::process;
use crate::progress::Progress;
use crate::workspace;

/// One of criterion's benchmarks.
#[derive(Debug, Serialize)]
pub(super) struct Benchmark {
    pub(super) name: String,
    /// Of an iteration, however much it does.
    pub(super) median_ns: f64,
}

/// Runs bench targets, which `which` selects, and collects what they measured.
pub(super) fn run(which: &[&str]) -> Result<Vec<Benchmark>> {
    let results = workspace::target()?.join("criterion");
    if results.exists() {
        fs::remove_dir_all(&results)?;
    }
    let mut bench = workspace::cargo()?;
    bench.arg("bench").args(which).arg("--");
    process::run(bench.args(["--warm-up-time", "0.5", "--measurement-time", "1"]))?;
    let mut benchmarks = Vec::new();
    if results.exists() {
        collect(&results, &mut benchmarks)?;
    }
    benchmarks.sort_by(|a: &Benchmark, b| a.name.cmp(&b.name));
    Ok(benchmarks)
}

/// Runs the bench targets of all crates.
pub fn measure(_: &Progress) -> Result<Section> {
    // The bench targets alone: the libraries have none, and would not take criterion's options.
    let benchmarks = run(&["--workspace", "--bench", "*"])?;
    let mut text = String::from("## The crates\n\n| benchmark | median |\n|---|---:|\n");
    for Benchmark { name, median_ns } in &benchmarks {
        // Types with parameters are no tags of HTML.
        let name = name.replace('<', "&lt;");
        text.push_str(&format!("| {name} | {} |\n", duration(*median_ns)));
    }
    Section::new(&benchmarks, text)
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
    fn durations_are_readable() {
        assert_eq!(duration(12.5), "12.50 ns");
        assert_eq!(duration(12_500.0), "12.50 µs");
    }
}
