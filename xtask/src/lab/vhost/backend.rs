//! `vring-vhost` as a child process, and what it reports.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::wait_for;
use crate::process;
use crate::workspace;

/// A process that ends with this value.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Builds the program and returns its path.
pub fn build() -> Result<PathBuf> {
    let build = [
        "build",
        "--release",
        "-p",
        "vring-virtio-devices",
        "--features",
        "bin",
    ];
    process::run_quietly(workspace::cargo()?.args(build))?;
    Ok(workspace::target()?.join("release/vring-vhost"))
}

/// Starts `program`, and waits for `socket` if it is to listen there.
pub fn start(program: &Path, args: &[&str], socket: Option<&str>) -> Result<Running> {
    let child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let running = Running(child);
    if let Some(socket) = socket {
        wait_for("the backend's socket", || Ok(Path::new(socket).exists()))?;
    }
    Ok(running)
}

/// What the backend says of a card in the end.
#[derive(Clone, Copy, Debug)]
pub struct Card {
    pub received: u64,
    pub transmitted: u64,
    pub transmit_dropped: u64,
}

/// Ends a backend as a service manager does, and returns what it says of its cards.
pub fn stopped(mut backend: Running) -> Result<Vec<Card>> {
    let pid = backend.0.id().to_string();
    process::run_quietly(Command::new("kill").args(["-TERM", &pid]))?;
    wait_for("the backend to end", || Ok(backend.0.try_wait()?.is_some()))?;
    let status = backend.0.wait()?;
    ensure!(status.success(), "the backend ended with {status}");
    let mut output = String::new();
    if let Some(mut stdout) = backend.0.stdout.take() {
        stdout.read_to_string(&mut output)?;
    }
    output
        .lines()
        .map(|line| {
            let field = |name: &str| number_after(line, &format!(" {name}: "));
            Ok(Card {
                received: field("received")?,
                transmitted: field("transmitted")?,
                transmit_dropped: field("transmit_dropped")?,
            })
        })
        .collect()
}

/// The number that follows `label` in `text`.
pub fn number_after(text: &str, label: &str) -> Result<u64> {
    let rest = text
        .split_once(label)
        .with_context(|| format!("no `{label}` in {text}"))?
        .1;
    let digits = rest
        .trim_start()
        .split(|c: char| !c.is_ascii_digit())
        .next();
    Ok(digits.unwrap_or_default().parse()?)
}
