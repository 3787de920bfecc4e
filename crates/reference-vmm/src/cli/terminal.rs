//! The terminal in raw mode, and what the user types into it.

use std::io;
use std::os::fd::AsFd;

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// Keeps a file in raw mode while it lives, if it is a terminal.
pub(super) struct RawMode<F: AsFd> {
    file: F,
    previous: Option<Termios>,
}

impl<F: AsFd> RawMode<F> {
    pub(super) fn enter(file: F) -> io::Result<Self> {
        if !isatty(&file) {
            return Ok(Self {
                file,
                previous: None,
            });
        }
        let previous = tcgetattr(&file)?;
        let mut raw = previous.clone();
        raw.make_raw();
        // Output keeps turning line feeds into new lines, for messages of the VMM.
        raw.output_modes = previous.output_modes;
        tcsetattr(&file, OptionalActions::Now, &raw)?;
        Ok(Self {
            file,
            previous: Some(previous),
        })
    }
}

impl<F: AsFd> Drop for RawMode<F> {
    fn drop(&mut self) {
        if let Some(previous) = &self.previous {
            // A terminal that has gone needs no restoring.
            let _ = tcsetattr(&self.file, OptionalActions::Now, previous);
        }
    }
}

/// Ctrl-A, which starts a command to the VMM.
const PREFIX: u8 = 1;

/// What was typed, with the commands taken out.
#[derive(Debug, Default)]
pub(super) struct Escape {
    prefixed: bool,
}

impl Escape {
    /// Appends to `output` what is for the guest; returns true when the user wants to end the machine.
    pub(super) fn filter(&mut self, input: &[u8], output: &mut Vec<u8>) -> bool {
        for byte in input {
            match (std::mem::take(&mut self.prefixed), *byte) {
                (false, PREFIX) => self.prefixed = true,
                (true, b'x' | b'X') => return true,
                (true, PREFIX) | (false, _) => output.push(*byte),
                (true, other) => output.extend([PREFIX, other]),
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use rustix::fs::{Mode, OFlags, open};
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    use rustix::termios::LocalModes;

    use super::*;

    #[test]
    fn a_terminal_is_raw_until_the_end_or_a_panic() {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap();
        let terminal = open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let modes = || {
            let now = tcgetattr(&terminal).unwrap();
            (now.local_modes, now.input_modes, now.output_modes)
        };
        let before = modes();
        let raw = RawMode::enter(&terminal).unwrap();
        assert!(!modes().0.intersects(LocalModes::ICANON | LocalModes::ECHO));
        assert_eq!(modes().2, before.2);
        drop(raw);
        assert_eq!(modes(), before);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let _raw = RawMode::enter(&terminal).unwrap();
            assert_eq!(modes(), before, "the panic that is meant");
        }));
        assert!(panicked.is_err());
        assert_eq!(modes(), before);
    }

    #[test]
    fn what_is_no_terminal_is_left_alone() {
        let (reader, _writer) = io::pipe().unwrap();
        assert!(RawMode::enter(reader).unwrap().previous.is_none());
    }

    #[test]
    fn commands_are_taken_out_wherever_reads_split_them() {
        let mut escape = Escape::default();
        let mut out = Vec::new();
        assert!(!escape.filter(b"ab\x01", &mut out));
        assert!(!escape.filter(b"\x01c\x01d", &mut out));
        assert_eq!(out, b"ab\x01c\x01d");
        assert!(!escape.filter(b"\x01", &mut out));
        assert!(escape.filter(b"xrest", &mut out));
        assert_eq!(out, b"ab\x01c\x01d");
    }
}
