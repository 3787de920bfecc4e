//! `vpio serve`: an arbiter.

use std::fmt::Display;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use sriov_vfio::sysfs::{PciAddress, Sysfs};
use sriov_vfio::vfio::VfioSpace;
use sriov_vfio::vfio::kernel::Groups;
use vpio_model::arbiter::{Handover, InputPolicy, Sharing, Why};
use vpio_model::serve::{Event, Listener, Server, Shown};

use crate::Source;

/// What is shared, and how.
#[derive(Args)]
pub struct ServeArgs {
    /// The function, bound to vfio-pci (`sriov bind`)
    #[arg(value_name = "BDF")]
    function: PciAddress,
    #[command(flatten)]
    source: Source,
    /// Where to listen; whoever may write to this socket may take part
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// How long a guest keeps the device at least, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 50)]
    quantum: u64,
    /// How long a guest waits before the device is taken from another by force, which resets it, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2000)]
    patience: u64,
    /// What becomes of input for guests whose turn it is not
    #[arg(long, value_enum, default_value_t = InputArg::Switch)]
    input: InputArg,
    /// Let the guests see this revision: drivers use old ways of a device with an old one
    #[arg(long, value_name = "NUMBER")]
    revision: Option<u8>,
    /// Tell of each turn: when it began, why, and whose it is
    #[arg(short, long)]
    verbose: bool,
}

/// Input for guests whose turn it is not.
#[derive(Clone, Copy, ValueEnum)]
enum InputArg {
    /// They have their turns though they do not ask: for devices that hear by themselves, such as network cards
    Switch,
    /// It is lost: for devices that only do what they are told
    Drop,
}

/// Shares the function until a signal ends the process.
pub fn run(args: &ServeArgs) -> Result<ExitCode> {
    ensure!(
        args.patience > args.quantum,
        "--patience must be more than --quantum, or nobody keeps the device"
    );
    let model = args.source.model()?;
    let report = model.check(args.source.states);
    for finding in report.findings.iter().filter(|f| f.is_unsafe()) {
        say(format_args!("unsafe: {finding}"));
    }
    ensure!(report.is_safe(), "the model is unsafe");
    ensure!(
        report.complete,
        "a part of the model has more than {} states: what they hold is not known",
        args.source.states
    );
    let space = Groups::new(Sysfs::default(), None).container()?;
    let device = space.clone().open(args.function, None)?;
    let sharing = Sharing {
        quantum: args.quantum,
        patience: args.patience,
        input: match args.input {
            InputArg::Switch => InputPolicy::Switch,
            InputArg::Drop => InputPolicy::Drop,
        },
    };
    let shown = Shown {
        address: args.function.to_string(),
        revision: args.revision,
    };
    let (verbose, start) = (args.verbose, Instant::now());
    let observer = move |event: &Event<'_>| match event {
        Event::Turn(handover) if verbose => tell_turn(start.elapsed(), handover),
        _ => tell(event),
    };
    let server = Server::new(&shown, &device, space, &model, sharing, observer)?;
    // One that was killed leaves its socket.
    if fs::metadata(&args.socket).is_ok_and(|about| about.file_type().is_socket()) {
        fs::remove_file(&args.socket)?;
    }
    let address = shown.address;
    let shown = args.socket.display();
    let listener =
        Listener::bind(&args.socket).with_context(|| format!("cannot listen at {shown}"))?;
    say(format_args!("{address} is shared at {shown}"));
    loop {
        if let Err(error) = server.admit(listener.accept()?) {
            say(format_args!("a guest is not admitted: {error}"));
        }
    }
}

/// For whoever started it.
fn say(words: impl Display) {
    eprintln!("vpio: {words}");
}

fn tell_turn(time: Duration, turn: &Handover) {
    let why = match turn.why {
        Why::Free => "nobody has the device",
        Why::Reusable => "the device is reusable",
        Why::Forced => "taken by force",
    };
    let asked = if turn.asked { "asked" } else { "has input" };
    let device = if turn.replayed {
        "as it left it"
    } else {
        "reset"
    };
    say(format_args!(
        "{:.3} s: turn of {}, which {asked}, {} ms ago: {why}; it finds it {device}",
        time.as_secs_f64(),
        turn.guest,
        turn.waited
    ));
}

fn tell(event: &Event<'_>) {
    match event {
        Event::Joined(guest) => say(format_args!("{guest} takes part")),
        Event::Denied {
            guest, at, denied, ..
        } => say(format_args!(
            "{guest}: {:#x} is denied: {denied}",
            at.offset
        )),
        Event::Left {
            guest,
            counts,
            turns,
            why,
        } => {
            let who = guest.map_or("a process".to_owned(), |guest| guest.to_string());
            let why = why.map_or("".to_owned(), |why| format!(", sent away: {why}"));
            let (accesses, denied) = (counts.accesses, counts.denied);
            say(format_args!(
                "{who} went away with {accesses} accesses, {denied} denied, after {} turns, {} by force{why}",
                turns.switches.saturating_add(turns.forced),
                turns.forced
            ));
        }
        Event::Lost => {
            say("the device was not reset: the kernel does that when nobody has it open");
            process::exit(1);
        }
        _ => {}
    }
}
