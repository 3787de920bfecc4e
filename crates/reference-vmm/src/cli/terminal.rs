//! The terminal in raw mode, and what the user types into it.

use std::io;

use rustix::stdio::stdin;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// Keeps standard input in raw mode while it lives, if it is a terminal.
pub(super) struct RawMode {
    previous: Option<Termios>,
}

impl RawMode {
    pub(super) fn enter() -> io::Result<Self> {
        if !isatty(stdin()) {
            return Ok(Self { previous: None });
        }
        let previous = tcgetattr(stdin())?;
        let mut raw = previous.clone();
        raw.make_raw();
        // Output keeps turning line feeds into new lines, for messages of the VMM.
        raw.output_modes = previous.output_modes;
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        Ok(Self {
            previous: Some(previous),
        })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Some(previous) = &self.previous {
            // A terminal that has gone needs no restoring.
            let _ = tcsetattr(stdin(), OptionalActions::Now, previous);
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
    use super::*;

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
