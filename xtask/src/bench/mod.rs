//! The benchmarks, each beside its peer, as tables, JSON and a page of the book.

mod assigned;
mod boots;
mod criterion;
mod grant;
mod iommu;
mod ringtest;
mod vhost;
mod vpio;

use std::fs;

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::progress::Progress;
use crate::workspace;

/// In this order on the page. A further one is a module that measures, and a line here.
const SECTIONS: &[(&str, Measure)] = &[
    ("criterion", criterion::measure),
    ("ringtest", ringtest::measure),
    ("vhost", vhost::measure),
    ("iommu", iommu::measure),
    ("grant", grant::measure),
    ("vpio", vpio::measure),
    ("boots", boots::measure),
    ("assigned", assigned::measure),
];

type Measure = fn(&Progress) -> Result<Section>;

/// What to measure.
#[derive(Args, Debug)]
pub struct BenchArgs {
    /// Only these sections (criterion, ringtest, vhost, iommu, grant, vpio, boots, assigned, …); the book's page is written by a run of all alone
    #[arg(value_name = "SECTION")]
    only: Vec<String>,
}

/// Figures that belong together.
struct Section {
    /// For programs.
    figures: serde_json::Value,
    /// For people: Markdown, from its heading on.
    text: String,
}

impl Section {
    fn new(figures: &impl Serialize, text: String) -> Result<Self> {
        Ok(Self {
            figures: serde_json::to_value(figures)?,
            text,
        })
    }
}

/// Measures, prints the tables, and writes `target/bench.json` and, if nothing is left out, the book's page.
pub fn bench(args: &BenchArgs) -> Result<()> {
    let names: Vec<&str> = SECTIONS.iter().map(|(name, _)| *name).collect();
    for only in &args.only {
        ensure!(
            names.contains(&only.as_str()),
            "no section {only}; there are: {}",
            names.join(", ")
        );
    }
    let progress = Progress::new("bench");
    let mut figures = serde_json::Map::new();
    let mut page = PREFACE.to_owned();
    for (name, measure) in SECTIONS {
        if !args.only.is_empty() && !args.only.iter().any(|only| only == name) {
            continue;
        }
        progress.step(name);
        let section = measure(&progress)?;
        page.push_str(&format!("\n{}\n", section.text.trim_end()));
        figures.insert((*name).to_owned(), section.figures);
    }
    drop(progress);
    print!("{page}");
    let json = workspace::target()?.join("bench.json");
    fs::write(&json, serde_json::to_string_pretty(&figures)?)?;
    println!("\nwritten: {}", json.display());
    if args.only.is_empty() {
        let book = workspace::root()?.join("docs/src/performance.md");
        fs::write(&book, page)?;
        println!("written: {}", book.display());
    }
    Ok(())
}

const PREFACE: &str = "# Performance\n\nWritten by `cargo xtask bench`; do not edit. A benchmark's peer is in the same run. \
     Times are medians on the machine that ran it; what can be compared are the rows of one table.\n";
