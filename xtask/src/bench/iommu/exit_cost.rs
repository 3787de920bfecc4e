//! What an exit to user space costs, where there is a KVM.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::lab::host::Host;
use crate::process::{self, quoted};
use crate::progress::Progress;
use crate::workspace;

/// Cycles, and where they were measured.
#[derive(Debug, Serialize)]
pub struct ExitCost {
    pub cycles: f64,
    pub place: &'static str,
}

impl ExitCost {
    /// Runs reference-vmm's example on this machine's KVM, or else in the lab.
    pub fn measured(progress: &Progress) -> Result<Self> {
        let mut build = workspace::cargo()?;
        build.args(["build", "--release", "-p", "reference-vmm"]);
        process::run_quietly(build.args(["--example", "exit_cost"]))?;
        let program = workspace::target()?.join("release/examples/exit_cost");
        let program = quoted(&program.to_string_lossy());
        let kvm = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm");
        let (output, place) = if kvm.is_ok() {
            let mut shell = std::process::Command::new("sh");
            let output = process::output_text(shell.args(["-c", &program]))?;
            (output, "on this machine's KVM")
        } else {
            let host = Host::new("exit-cost", Duration::from_secs(120));
            let finished = host.run(host.folder()?, &program, progress)?;
            ensure!(finished.status == 0, "{}", finished.output);
            let place = "in the lab, whose processor and KVM are emulated, so that it says little of a real one";
            (finished.output, place)
        };
        let cycles = output
            .trim()
            .parse()
            .with_context(|| format!("the example printed `{output}`"))?;
        Ok(Self { cycles, place })
    }
}
