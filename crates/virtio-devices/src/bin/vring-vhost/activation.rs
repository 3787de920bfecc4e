//! Sockets that systemd, or whoever speaks its protocol, passes (`sd_listen_fds(3)`).

use std::os::fd::{FromRawFd, RawFd};
use std::os::unix::net::UnixListener;

use anyhow::{Context, Result};

/// `SD_LISTEN_FDS_START`.
const FIRST: RawFd = 3;

/// The sockets that were passed to this process, in order. To be called once, before anything else is opened.
pub fn sockets() -> Result<Vec<UnixListener>> {
    let variable = |name| std::env::var(name).ok();
    if variable("LISTEN_PID").and_then(|pid| pid.parse().ok()) != Some(std::process::id()) {
        return Ok(Vec::new());
    }
    let count: RawFd = variable("LISTEN_FDS")
        .unwrap_or_default()
        .parse()
        .context("LISTEN_FDS is not a number")?;
    (FIRST..FIRST.saturating_add(count))
        .map(|fd| {
            // SAFETY: the descriptor was passed for us to own, and nothing in this process has touched it yet. If the environment
            // lies, it is closed or not a socket, and using it fails.
            let socket = unsafe { UnixListener::from_raw_fd(fd) };
            socket
                .local_addr()
                .with_context(|| format!("descriptor {fd} is not a Unix socket"))?;
            Ok(socket)
        })
        .collect()
}
