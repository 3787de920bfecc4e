//! The command line: arguments, the terminal, signals, exit statuses.

mod args;
mod demo;
mod report;
mod run;
mod size;
mod terminal;
mod vhost_user;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};

/// Exit statuses, as `--help` lists them.
mod status {
    /// The guest powered off.
    pub(super) const POWERED_OFF: u8 = 0;
    /// The machine could not be made or run.
    pub(super) const FAILED: u8 = 1;
    /// The guest crashed.
    pub(super) const CRASHED: u8 = 3;
    /// The guest asked for a reset.
    pub(super) const RESET: u8 = 4;
    /// A signal ended it; its number is added, as shells do.
    pub(super) const SIGNAL: u8 = 128;

    /// The guest wrote `value` to the debug-exit port: twice that and one, which is never success, as QEMU has it.
    pub(super) fn of_debug_exit(value: u32) -> u8 {
        let [low, ..] = value.to_le_bytes();
        low << 1 | 1
    }
}

/// Runs the program and returns its exit status.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.command {
        Command::Run(args) => run::run(&args),
        Command::Demo(args) => demo::run(&args),
    };
    match result {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            // If nobody reads the message the status still tells.
            let _ = writeln!(std::io::stderr(), "reference-vmm: {error}");
            ExitCode::from(status::FAILED)
        }
    }
}
