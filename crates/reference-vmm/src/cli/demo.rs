use std::io::{self, Write};

use super::args::DemoArgs;
use super::{report, status};
use crate::demo;
use crate::report::Report;

/// Runs the built-in guest and prints what it cost.
pub(super) fn run(args: &DemoArgs) -> Result<u8, Box<dyn std::error::Error>> {
    let stopped = demo::run(Box::new(io::stdout()))?;
    write!(io::stdout(), "\n{}", Report::new(&stopped))?;
    report::write(&args.report, &stopped)?;
    Ok(status::POWERED_OFF)
}
