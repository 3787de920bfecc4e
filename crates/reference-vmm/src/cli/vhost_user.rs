//! `--vhost-user`: devices that other processes serve.

use std::path::PathBuf;

use crate::machine::VhostUserKind;

/// A backend's socket, and what it serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VhostUserArg {
    pub(super) kind: VhostUserKind,
    pub(super) socket: PathBuf,
}

pub(super) fn parse(text: &str) -> Result<VhostUserArg, String> {
    let (kind, socket) = match text.split_once('=') {
        Some(("blk", socket)) if !socket.is_empty() => (VhostUserKind::Block, socket),
        Some(("net", socket)) if !socket.is_empty() => (VhostUserKind::Net, socket),
        _ => return Err("expected blk=SOCKET or net=SOCKET".to_owned()),
    };
    Ok(VhostUserArg {
        kind,
        socket: socket.into(),
    })
}
