//! Fuzzing without nightly or cargo-fuzz: the targets of package `fuzz`, built with what
//! libFuzzer needs.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};
use clap::Args;

use crate::process;
use crate::workspace;

const HOST_TARGET: &str = "x86_64-unknown-linux-gnu";
/// What cargo-fuzz passes: coverage counters for libFuzzer, AddressSanitizer, overflow checks.
const RUSTFLAGS: &str = "--cfg fuzzing -Zsanitizer=address -Cdebug-assertions -Ccodegen-units=1 \
     -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
     -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares";

/// What to fuzz.
#[derive(Args, Debug)]
pub struct FuzzArgs {
    /// Only the targets whose names contain one of these
    #[arg(value_name = "TARGET")]
    only: Vec<String>,
    /// Seconds for each target
    #[arg(long, default_value_t = 60)]
    seconds: u32,
}

/// How long to soak.
#[derive(Args, Debug)]
pub struct SoakArgs {
    /// Cases of each property test
    #[arg(long, default_value_t = 20_000)]
    cases: u32,
    /// Seconds for each fuzz target
    #[arg(long, default_value_t = 600)]
    seconds: u32,
}

/// Fuzzes each target. What libFuzzer finds new is in target/fuzz-corpus, a crash in
/// fuzz/artifacts.
pub fn fuzz(args: &FuzzArgs) -> Result<()> {
    process::run(
        workspace::cargo()?
            .args([
                "build",
                "--release",
                "-p",
                "fuzz",
                "--features",
                "libfuzzer",
                "--bins",
            ])
            .args(["--target", HOST_TARGET])
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", RUSTFLAGS),
    )?;
    let root = workspace::root()?.join("fuzz");
    let mut ran = 0;
    for target in targets()? {
        if !args.only.is_empty() && !args.only.iter().any(|only| target.contains(only.as_str())) {
            continue;
        }
        let found = workspace::target()?.join("fuzz-corpus").join(&target);
        let artifacts = root.join("artifacts").join(&target);
        fs::create_dir_all(&found)?;
        fs::create_dir_all(&artifacts)?;
        let program = workspace::target()?
            .join(HOST_TARGET)
            .join("release")
            .join(&target);
        let mut command = Command::new(program);
        command.arg(format!("-max_total_time={}", args.seconds));
        command
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(&found);
        let committed = root.join("corpus").join(&target);
        if committed.exists() {
            command.arg(committed);
        }
        process::run(&mut command)?;
        ran += 1;
    }
    ensure!(ran > 0, "no fuzz target matches {:?}", args.only);
    Ok(())
}

/// Runs the tests in release with many cases a property, then each fuzz target.
pub fn soak(args: &SoakArgs) -> Result<()> {
    let mut tests = workspace::cargo()?;
    tests.args(["test", "--workspace", "--release"]);
    process::run(tests.env("PROPTEST_CASES", args.cases.to_string()))?;
    fuzz(&FuzzArgs {
        only: Vec::new(),
        seconds: args.seconds,
    })
}

/// The names of the binaries of package `fuzz`.
fn targets() -> Result<Vec<String>> {
    let packages = workspace::packages()?;
    Ok(packages
        .iter()
        .filter(|package| package.name == "fuzz")
        .flat_map(|package| &package.targets)
        .filter(|target| target.kind.iter().any(|kind| kind == "bin"))
        .map(|target| target.name.clone())
        .collect())
}
