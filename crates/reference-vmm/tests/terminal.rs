//! The terminal is as it was, whatever ends the machine. They need KVM.
#![expect(clippy::unwrap_used, reason = "test code")]

mod kvm;
mod support;

use std::fs::File;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use kvm::has_kvm;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use support::{kernel, run};

/// What ends the machine.
#[derive(Clone, Copy, Debug)]
enum End {
    Keys(&'static [u8]),
    Signal(Signal),
}

/// Runs `command` on a terminal of its own until the guest prompts, ends it, and returns its status.
fn status_of(mut command: Command, end: End) -> i32 {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap();
    let terminal = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
    let mut master = File::from(master);
    let modes = || {
        let now = tcgetattr(&terminal).unwrap();
        let special = format!("{:?}", now.special_codes);
        (now.local_modes, now.input_modes, now.output_modes, special)
    };
    let before = modes();
    let ours = || Stdio::from(terminal.try_clone().unwrap());
    let mut child = command
        .stdin(ours())
        .stdout(ours())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut prompt = [0];
    master.read_exact(&mut prompt).unwrap();
    assert_eq!(prompt, *b">");
    assert!(
        !modes()
            .0
            .intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    );
    match end {
        End::Keys(keys) => master.write_all(keys).unwrap(),
        End::Signal(signal) => kill_process(Pid::from_child(&child), signal).unwrap(),
    }
    let status = child.wait().unwrap();
    assert_eq!(modes(), before, "{end:?}");
    status.code().unwrap()
}

#[test]
fn the_terminal_is_restored() {
    if !has_kvm() {
        return;
    }
    let kernel = kernel();
    for (end, status) in [
        (End::Keys(b"p"), 0),
        (End::Keys(b"\x01x"), 0),
        (End::Keys(b"f"), 3),
        (End::Signal(Signal::HUP), 129),
        (End::Signal(Signal::INT), 130),
        (End::Signal(Signal::TERM), 143),
    ] {
        assert_eq!(status_of(run(&kernel), end), status, "{end:?}");
    }
}

#[test]
fn what_is_typed_goes_to_the_console_that_is_on_the_terminal() {
    if !has_kvm() {
        return;
    }
    let kernel = kernel();
    let mut command = run(&kernel);
    command.args(["--console", "stdio"]);
    // The guest polls its serial port, and does not hear the first key.
    assert_eq!(status_of(command, End::Keys(b"p\x01x")), 0);
    let mut command = run(&kernel);
    command.args(["--console", "stdio"]);
    assert_eq!(status_of(command, End::Signal(Signal::TERM)), 143);
}
