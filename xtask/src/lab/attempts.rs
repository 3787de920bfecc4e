//! Trying again what the emulated host itself may have broken.
//!
//! A guest on the emulated host now and then crashes or hangs, whatever the VMM, and so does that host (`docs/src/lab.md` tells what is
//! known of it). A guest that reached the end of its work but failed a check is never tried again.

use std::fmt;

use anyhow::{Result, bail};

use super::host::{Finished, HostDied};

/// Attempts at a scenario. A fault of ours that shows each time still fails.
pub const ATTEMPTS: u32 = 4;

/// The guest crashed or hung before it said that its work was done; the report of that boot.
#[derive(Debug)]
pub struct GuestDied(pub String);

impl std::error::Error for GuestDied {}

impl fmt::Display for GuestDied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Calls `attempt` until neither the guest in it nor the host dies, at most [`ATTEMPTS`] times; also returns at which attempt that was,
/// from 1.
pub fn attempts<T>(name: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<(T, u32)> {
    let mut number = 1;
    loop {
        match attempt() {
            Ok(value) => return Ok((value, number)),
            Err(error)
                if number < ATTEMPTS && (error.is::<GuestDied>() || error.is::<HostDied>()) =>
            {
                eprintln!("{name}: attempt {number}: the guest or its host died\n{error:#}");
                number += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Checks that a script succeeded and that for each of `expected` there is a line that begins with it. Where fewer than `guests` lines
/// begin with a guest's `last_words`, one died.
pub fn reported(
    finished: &Finished,
    expected: &[&str],
    last_words: &str,
    guests: usize,
) -> Result<()> {
    let count = |words: &str| {
        let lines = finished.output.lines();
        lines.filter(|line| line.starts_with(words)).count()
    };
    let missing: Vec<&&str> = expected.iter().filter(|words| count(words) == 0).collect();
    if missing.is_empty() && finished.status == 0 {
        return Ok(());
    }
    let report = format!(
        "{}\nnot reported: {missing:?}; the script ended with status {}; the logs are in {}",
        finished.output,
        finished.status,
        finished.folder.display()
    );
    if count(last_words) < guests {
        return Err(GuestDied(report).into());
    }
    bail!(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_always_dies_fails() {
        let mut calls = 0;
        let result = attempts("test", || -> Result<()> {
            calls += 1;
            Err(GuestDied("triple fault".into()).into())
        });
        assert!(result.is_err());
        assert_eq!(calls, ATTEMPTS);
    }

    #[test]
    fn a_guest_that_dies_once_passes_at_the_second_attempt() {
        let mut dead = vec!["triple fault"];
        let result = attempts("test", || match dead.pop() {
            Some(why) => Err(GuestDied(why.into()).into()),
            None => Ok("alive"),
        });
        assert_eq!(result.unwrap(), ("alive", 2));
    }

    #[test]
    fn a_host_that_dies_is_tried_again_too() {
        let mut dead = vec!["hangs"];
        let result = attempts("test", || match dead.pop() {
            Some(why) => Err(HostDied(why.into()).into()),
            None => Ok("alive"),
        });
        assert_eq!(result.unwrap(), ("alive", 2));
    }

    #[test]
    fn a_failed_check_is_not_tried_again() {
        let mut calls = 0;
        let result = attempts("test", || -> Result<()> {
            calls += 1;
            bail!("the sums differ")
        });
        assert!(result.is_err());
        assert_eq!(calls, 1);
    }

    #[test]
    fn a_guest_without_last_words_died_and_one_with_them_failed() {
        let finished = |output: &str, status| Finished {
            status,
            output: output.to_owned(),
            folder: "logs".into(),
        };
        let check = |output, status, guests| {
            reported(
                &finished(output, status),
                &["host: a", "done"],
                "done",
                guests,
            )
        };
        assert!(check("host: a: ok\ndone\n", 0, 1).is_ok());
        for (output, status, guests, died) in [
            ("host: a: ok\n", 0, 1, true),
            ("host: a: ok\ndone\n", 1, 2, true),
            ("host: a: ok\ndone\n", 1, 1, false),
            ("done\n", 0, 1, false),
        ] {
            let error = check(output, status, guests).unwrap_err();
            assert_eq!(error.is::<GuestDied>(), died, "{output} {status}");
        }
    }
}
