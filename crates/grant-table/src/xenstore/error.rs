//! Errors, as the wire names them.

/// Why a request failed (`xsd_errors`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The domain may not.
    #[error("EACCES")]
    Access,
    /// The transaction met another change: do it again.
    #[error("EAGAIN")]
    Again,
    /// It is there.
    #[error("EEXIST")]
    Exists,
    /// The request makes no sense.
    #[error("EINVAL")]
    Invalid,
    /// It is not there.
    #[error("ENOENT")]
    NoEntry,
    /// The domain has as much as it may.
    #[error("ENOSPC")]
    NoSpace,
    /// There is no such request.
    #[error("ENOSYS")]
    NotImplemented,
    /// The answer does not fit.
    #[error("E2BIG")]
    TooBig,
}
