//! Everything that must hold, in one task.

mod cargo_steps;
mod lab_steps;
mod qemu_steps;
pub mod summary;
mod tutorial;

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
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
    /// How many of the emulated hosts run at a time: each keeps a core busy and takes 3 GiB of memory
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    hosts: u8,
}

/// What a step does; it may add several rows' worth of checks.
type Run = fn(&Session) -> Result<Outcome>;
/// Its name, and what it does.
type Step = (&'static str, Run);

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
    /// Runs one step.
    fn step(&self, (name, run): Step) -> Row {
        self.progress.step(name);
        let start = Instant::now();
        let Outcome { counts, note } = run(self).unwrap_or_else(|error| {
            eprintln!("{name}: FAILED: {error:#}");
            Outcome {
                counts: Counts::FAILED,
                note: "FAILED".to_owned(),
            }
        });
        Row {
            name: name.to_owned(),
            counts,
            note,
            took: start.elapsed(),
        }
    }

    /// Runs `steps` in `lanes` threads, each of which takes the next when it is free; the rows are in the order of the steps.
    fn side_by_side(&self, steps: &[Step], lanes: u8) -> Vec<Row> {
        let next = AtomicUsize::new(0);
        let rows = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for lane in 1..=lanes {
                let lane = Self {
                    logs: self.logs.clone(),
                    progress: self.progress.another(&format!("test, host {lane}")),
                    on_ci: self.on_ci,
                };
                let (next, rows) = (&next, &rows);
                scope.spawn(move || {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(step) = steps.get(index) else { break };
                        let row = lane.step(*step);
                        let mut rows = rows.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                        rows.push((index, row));
                    }
                });
            }
        });
        let mut rows = rows
            .into_inner()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        rows.sort_by_key(|(index, _)| *index);
        rows.into_iter().map(|(_, row)| row).collect()
    }

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
    let wanted = |(name, _): &&Step| {
        args.only.is_empty() || args.only.iter().any(|only| name.contains(only.as_str()))
    };
    let alone: Vec<Step> = [
        cargo_steps::STEPS,
        tutorial::STEPS,
        qemu_steps::STEPS,
        lab_steps::ALONE,
    ]
    .concat();
    if args.list {
        let steps = alone.iter().chain(lab_steps::SIDE_BY_SIDE);
        steps.for_each(|(name, _)| println!("{name}"));
        return Ok(());
    }
    let session = Session {
        logs: workspace::target()?.join("test-logs"),
        progress: Progress::new("test"),
        on_ci: std::env::var_os("CI").is_some_and(|value| value == "true" || value == "1"),
    };
    fs::create_dir_all(&session.logs)?;
    let steps = alone.iter().filter(wanted);
    let mut rows: Vec<Row> = steps.map(|step| session.step(*step)).collect();
    let steps = lab_steps::SIDE_BY_SIDE.iter().filter(wanted);
    rows.extend(session.side_by_side(&steps.copied().collect::<Vec<_>>(), args.hosts));
    drop(session);
    let summary = Summary(rows);
    println!("{summary}");
    match summary.counts().failed {
        0 => Ok(()),
        failed => bail!("{failed} checks failed"),
    }
}
