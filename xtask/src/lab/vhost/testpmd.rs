//! DPDK's program that drives network cards.

use std::io::{Read as _, Write as _};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, ensure};

use super::backend::{Running, number_after};
use super::wait_for;
use crate::lab::debian;

/// Installs it where it is missing and that can be done.
pub fn ensure_testpmd() -> Result<()> {
    debian::ensure_program("dpdk-testpmd", &["dpdk-dev"], false)
}

/// A testpmd that waits for commands.
pub struct Testpmd {
    process: Running,
    input: ChildStdin,
    output: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Testpmd {
    /// Starts it with `device` (as `--vdev` has it) and the options `more`. It moves frames on processor 1.
    pub fn start(name: &str, device: &str, more: &[String]) -> Result<Self> {
        Self::start_at(1, name, device, more)
    }

    /// The same, on processor 0 or 1: two that poll on one are in each other's way.
    pub fn start_at(processor: u8, name: &str, device: &str, more: &[String]) -> Result<Self> {
        let other = if processor == 0 { "1" } else { "0" };
        // What it says of lost connections goes to its standard error.
        let mut child = Command::new("sh")
            .args(["-c", "exec dpdk-testpmd \"$@\" 2>&1", "testpmd"])
            .args([
                "-l",
                "0,1",
                "--no-huge",
                "-m",
                "256",
                "--no-pci",
                "--no-telemetry",
                "--main-lcore",
                other,
            ])
            .args(["--file-prefix", &format!("vring-{name}"), "--vdev", device])
            .args(["--", "-i", "--total-num-mbufs=4096", "--no-mlockall"])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start dpdk-testpmd")?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let process = Running(child);
        let (input, mut stdout) = pipes.context("dpdk-testpmd has no pipes")?;
        let output = Arc::<Mutex<String>>::default();
        let lines = Arc::clone(&output);
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = stdout.read(&mut bytes) {
                let text = String::from_utf8_lossy(bytes.get(..len).unwrap_or_default());
                lines
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push_str(&text);
            }
        });
        let testpmd = Self {
            process,
            input,
            output,
            reader,
        };
        wait_for("testpmd's prompt", || {
            Ok(testpmd.text().contains("testpmd> "))
        })
        .with_context(|| testpmd.text())?;
        Ok(testpmd)
    }

    /// What it printed so far.
    pub fn text(&self) -> String {
        self.output
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Has it carry out `commands`, a line each.
    pub fn tell(&mut self, commands: &str) -> Result<()> {
        Ok(writeln!(self.input, "{commands}")?)
    }

    /// Stops forwarding and ends it; returns what it printed.
    pub fn end(mut self) -> Result<String> {
        self.tell("stop\nquit")?;
        wait_for("testpmd to end", || {
            Ok(self.process.0.try_wait()?.is_some())
        })?;
        ensure!(self.reader.join().is_ok(), "testpmd's output is lost");
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(output.clone())
    }
}

/// The sum of `counter` over the reports on all ports that testpmd printed, one each time it stopped.
pub fn total(output: &str, counter: &str) -> Result<u64> {
    let mut sum = 0;
    let mut reports = output
        .split("+++ Accumulated forward statistics")
        .skip(1)
        .peekable();
    ensure!(
        reports.peek().is_some(),
        "testpmd reports nothing:\n{output}"
    );
    for report in reports {
        sum += number_after(report, &format!("{counter}: "))?;
    }
    Ok(sum)
}
