//! Everything that must hold, in one task.

mod cargo_steps;
mod lab_steps;
mod qemu_steps;
pub mod summary;
mod tutorial;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::process::shown;
use crate::progress::Progress;
use crate::workspace;
use summary::{Counts, Row, Summary};

/// Which steps to run.
#[derive(Args, Debug)]
pub struct TestArgs {
    /// Only the steps whose names contain one of these
    #[arg(value_name = "STEP")]
    only: Vec<String>,
    /// List the steps and end
    #[arg(long)]
    list: bool,
}

/// What a step does; it may add several rows' worth of checks.
type Run = fn(&Session) -> Result<Outcome>;

/// What a step came to.
struct Outcome {
    counts: Counts,
    note: String,
}

impl Outcome {
    fn passed() -> Self {
        Self {
            counts: Counts::PASSED,
            note: String::new(),
        }
    }

    fn skipped(why: &str) -> Self {
        Self {
            counts: Counts::SKIPPED,
            note: format!("SKIPPED: {why}"),
        }
    }
}

/// What the steps share.
struct Session {
    logs: PathBuf,
    progress: Progress,
    on_ci: bool,
}

/// The result of a command that a step ran.
struct Logged {
    success: bool,
    output: String,
    log: PathBuf,
}

impl Session {
    /// Runs `command`, its output going to a log of this `name`.
    fn logged(&self, name: &str, command: &mut Command) -> Result<Logged> {
        self.progress.note(&shown(command));
        let log = self.logs.join(format!("{}.log", name.replace(' ', "-")));
        let file = fs::File::create(&log)?;
        command
            .stdin(Stdio::null())
            .stderr(file.try_clone()?)
            .stdout(file);
        let status = command
            .status()
            .with_context(|| format!("cannot start `{}`", shown(command)))?;
        let output = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        Ok(Logged {
            success: status.success(),
            output,
            log,
        })
    }

    /// Runs `command`, which is one check.
    fn check(&self, name: &str, command: &mut Command) -> Result<Outcome> {
        let logged = self.logged(name, command)?;
        if !logged.success {
            bail!("`{}`\n{}", shown(command), logged.tail());
        }
        Ok(Outcome::passed())
    }

    /// Runs `command`, which runs test binaries.
    fn tests(&self, name: &str, command: &mut Command) -> Result<Outcome> {
        let logged = self.logged(name, command)?;
        let mut counts = Counts::of_tests(&logged.output);
        let mut note = String::new();
        if !logged.success {
            eprintln!("{}", logged.tail());
            counts.failed = counts.failed.max(1);
            note = format!("see {}", logged.log.display());
        }
        Ok(Outcome { counts, note })
    }
}

impl Logged {
    /// The part of the output that tells what went wrong.
    fn tail(&self) -> String {
        let lines: Vec<&str> = self.output.lines().collect();
        let start = lines
            .iter()
            .position(|line| line.starts_with("error") || line.starts_with("failures:"))
            .unwrap_or_else(|| lines.len().saturating_sub(60));
        let shown: Vec<&str> = lines.iter().skip(start).take(200).copied().collect();
        format!(
            "{}\nthe whole log: {}",
            shown.join("\n"),
            self.log.display()
        )
    }
}

/// Runs the steps, prints the summary; an error if a check failed.
pub fn test(args: &TestArgs) -> Result<()> {
    let steps: Vec<(&str, Run)> = cargo_steps::STEPS
        .iter()
        .chain(tutorial::STEPS)
        .chain(qemu_steps::STEPS)
        .chain(lab_steps::STEPS)
        .copied()
        .collect();
    if args.list {
        steps.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(());
    }
    let session = Session {
        logs: workspace::target()?.join("test-logs"),
        progress: Progress::new("test"),
        on_ci: std::env::var_os("CI").is_some_and(|value| value == "true" || value == "1"),
    };
    fs::create_dir_all(&session.logs)?;
    let mut summary = Summary::default();
    for (name, run) in steps {
        if !args.only.is_empty() && !args.only.iter().any(|only| name.contains(only.as_str())) {
            continue;
        }
        session.progress.step(name);
        let start = Instant::now();
        let Outcome { counts, note } = run(&session).unwrap_or_else(|error| {
            eprintln!("{name}: FAILED: {error:#}");
            Outcome {
                counts: Counts::FAILED,
                note: "FAILED".to_owned(),
            }
        });
        summary.0.push(Row {
            name: name.to_owned(),
            counts,
            note,
            took: start.elapsed(),
        });
    }
    drop(session);
    println!("{summary}");
    match summary.counts().failed {
        0 => Ok(()),
        failed => bail!("{failed} checks failed"),
    }
}
