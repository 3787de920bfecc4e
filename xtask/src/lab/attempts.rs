//! Trying again what the emulated host itself may have broken.
//!
//! A guest on the emulated host now and then crashes or hangs, whatever the VMM, and so does that host (`docs/src/lab.md` tells what is
//! known of it). A guest that reached the end of its work but failed a check is never tried again.

use std::fmt;

use anyhow::Result;

use super::host::HostDied;

/// Attempts at a boot. A fault of ours that shows each time still fails.
pub const ATTEMPTS: u32 = 3;
/// Attempts at a boot that exits far more often, as those behind an IOMMU do: of these about one in four dies.
pub const ATTEMPTS_WITH_MANY_EXITS: u32 = 5;

/// The guest crashed or hung before it said that its work was done; the report of that boot.
#[derive(Debug)]
pub struct GuestDied(pub String);

impl std::error::Error for GuestDied {}

impl fmt::Display for GuestDied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Calls `attempt` until neither the guest in it nor the host dies, at most `limit` times; also returns at which attempt that was, from 1.
pub fn attempts<T>(
    name: &str,
    limit: u32,
    mut attempt: impl FnMut() -> Result<T>,
) -> Result<(T, u32)> {
    let mut number = 1;
    loop {
        match attempt() {
            Ok(value) => return Ok((value, number)),
            Err(error) if number < limit && (error.is::<GuestDied>() || error.is::<HostDied>()) => {
                eprintln!("{name}: attempt {number}: the guest or its host died\n{error:#}");
                number += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn a_guest_that_always_dies_fails() {
        let mut calls = 0;
        let result = attempts("test", ATTEMPTS, || -> Result<()> {
            calls += 1;
            Err(GuestDied("triple fault".into()).into())
        });
        assert!(result.is_err());
        assert_eq!(calls, 3);
    }

    #[test]
    fn a_guest_that_dies_once_passes_at_the_second_attempt() {
        let mut dead = vec!["triple fault"];
        let result = attempts("test", ATTEMPTS, || match dead.pop() {
            Some(why) => Err(GuestDied(why.into()).into()),
            None => Ok("alive"),
        });
        assert_eq!(result.unwrap(), ("alive", 2));
    }

    #[test]
    fn a_host_that_dies_is_tried_again_too() {
        let mut dead = vec!["hangs"];
        let result = attempts("test", ATTEMPTS, || match dead.pop() {
            Some(why) => Err(HostDied(why.into()).into()),
            None => Ok("alive"),
        });
        assert_eq!(result.unwrap(), ("alive", 2));
    }

    #[test]
    fn a_failed_check_is_not_tried_again() {
        let mut calls = 0;
        let result = attempts("test", ATTEMPTS, || -> Result<()> {
            calls += 1;
            bail!("the sums differ")
        });
        assert!(result.is_err());
        assert_eq!(calls, 1);
    }
}
