//! The tasks of this workspace.

mod bench;
mod book;
mod fuzz;
mod lab;
mod process;
mod progress;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The tasks of this workspace.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand, Debug)]
enum Task {
    /// Boot an unmodified Debian guest in reference-vmm, let it do real I/O, and check it
    ///
    /// Fetches all that it needs. Runs on this machine's KVM where that is backed by hardware and
    /// the task runs as root, otherwise inside the emulated host of the lab.
    Boot(lab::boot::BootArgs),
    /// Check everything: format, lints, tests in debug and release, packages, KVM, the lab
    Test(test::TestArgs),
    /// Run the benchmarks and the lab's comparisons, and write docs/src/performance.md
    Bench(bench::BenchArgs),
    /// Run the fuzz targets under libFuzzer and AddressSanitizer, on the stable toolchain
    Fuzz(fuzz::FuzzArgs),
    /// Run the property tests with many cases, then every fuzz target, for hours if so asked
    Soak(fuzz::SoakArgs),
    /// Run one lab scenario inside an emulated host that has KVM
    Lab(lab::LabArgs),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Boot(args) => lab::boot::boot(&args),
        Task::Test(args) => test::test(&args),
        Task::Bench(args) => bench::bench(&args),
        Task::Fuzz(args) => fuzz::fuzz(&args),
        Task::Soak(args) => fuzz::soak(&args),
        Task::Lab(args) => lab::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
