use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::size;

/// Runs virtual machines on KVM.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, propagate_version = true)]
pub(super) struct Args {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    Run(RunArgs),
}

/// Boot a Linux kernel.
///
/// The first serial port is the terminal: type Ctrl-A X to end the machine, Ctrl-A Ctrl-A for a Ctrl-A.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit status:
  0      the guest powered off
  1      the machine could not be made or run
  2      the command line was wrong
  3      the guest crashed: triple fault or kernel panic
  4      the guest asked for a reset
  128+N  signal N ended the machine cleanly

Example:
  reference-vmm run --kernel vmlinuz --initrd initrd.img --memory 1G --cpus 2")]
pub(super) struct RunArgs {
    /// Kernel: a bzImage, or an ELF file with a PVH entry point
    #[arg(long, value_name = "FILE")]
    pub(super) kernel: PathBuf,

    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub(super) initrd: Option<PathBuf>,

    /// Kernel command line
    #[arg(long, value_name = "TEXT", default_value = "console=ttyS0")]
    pub(super) cmdline: String,

    /// Number of vCPUs
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=254))]
    pub(super) cpus: u8,

    /// Size of RAM, with K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size::parse)]
    pub(super) memory: u64,
}
