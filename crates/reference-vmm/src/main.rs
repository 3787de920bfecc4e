//! The command-line program of the reference VMM.

use std::process::ExitCode;

fn main() -> ExitCode {
    reference_vmm::cli::main()
}
