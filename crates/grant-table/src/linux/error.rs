//! What can fail.

use std::io;
use std::path::PathBuf;

use crate::spec::DomId;
use crate::spec::event::Port;
use crate::spec::grant::GrantRef;

/// What a device of Linux's refused, and why.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinuxError {
    /// The device cannot be opened. It is there only in a Xen domain whose kernel has its driver.
    #[error("cannot open {path}")]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Pages cannot be granted. `ENOSPC`: all programs together have as many as gntalloc allows.
    #[error("cannot grant {count} pages to {domain}")]
    Allocate {
        /// To whom.
        domain: DomId,
        /// How many.
        count: u32,
        /// Why.
        source: io::Error,
    },
    /// Grants cannot be mapped. The kernel does not tell which of them Xen refused.
    #[error("cannot map {references:?} of {domain}")]
    Map {
        /// Whose.
        domain: DomId,
        /// Which.
        references: Vec<GrantRef>,
        /// Why.
        source: io::Error,
    },
    /// The limit of mappings cannot be set. `ENOTTY`: this kernel has none.
    #[error("cannot limit the mappings to {count}")]
    SetMaxGrants {
        /// The limit.
        count: u32,
        /// Why.
        source: io::Error,
    },
    /// No copy was made, or only some: a part of a page is not in it, or memory is not there.
    #[error("cannot copy in {count} parts")]
    Copy {
        /// How many copies.
        count: usize,
        /// Why.
        source: io::Error,
    },
    /// A copy is longer than its length can tell.
    #[error("cannot copy {0} bytes at once")]
    Length(usize),
    /// It cannot be arranged what happens when a page is unmapped.
    #[error("cannot arrange the unmapping of page {page}")]
    OnUnmap {
        /// Which, of those mapped together.
        page: u32,
        /// Why.
        source: io::Error,
    },
    /// A port cannot be made.
    #[error("cannot bind a port to {to}")]
    Bind {
        /// To what.
        to: String,
        /// Why.
        source: io::Error,
    },
    /// A port cannot be used, as this program has not bound it.
    #[error("cannot {what} {port:?}")]
    Port {
        /// What was to be done with it.
        what: &'static str,
        /// Which.
        port: Port,
        /// Why.
        source: io::Error,
    },
    /// The device of event channels refuses. `EFBIG`: events were lost.
    #[error("cannot {what} events")]
    Events {
        /// What was to be done.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}
