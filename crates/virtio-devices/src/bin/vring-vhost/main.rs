//! Serves virtio devices to vhost-user frontends: virtual machine monitors, or programs that bring their own drivers.

mod activation;
mod args;
mod service;

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

use args::Args;
use service::Service;

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vring-vhost: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until SIGTERM or SIGINT, then lets go of the frontends and says what was transferred.
fn run(args: Args) -> Result<()> {
    // From now on signals wait to be read.
    let (mut signals, sender) = UnixStream::pair()?;
    for signal in [SIGTERM, SIGINT] {
        pipe::register(signal, sender.try_clone()?)?;
    }
    let services = args.devices()?;
    let services = services
        .into_iter()
        .map(Service::start)
        .collect::<Result<Vec<_>>>()?;
    signals
        .read_exact(&mut [0])
        .context("cannot wait for signals")?;
    for service in services {
        service.stop();
    }
    Ok(())
}
