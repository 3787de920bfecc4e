//! Layouts and numbers of Xen's public interface; no behaviour.
//!
//! Each module names the header of `xen/include/public` that it restates.

pub mod block;
pub mod event;
pub mod grant;
pub mod linux;
pub mod net;
pub mod ring;
pub mod xenbus;
pub mod xenstore;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a page, and of a frame.
pub const PAGE_SIZE: usize = 4096;

/// A domain's identifier (`xen.h`, `domid_t`).
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(transparent)]
pub struct DomId(pub u16);

impl DomId {
    /// The first identifier that names no domain (`DOMID_FIRST_RESERVED`).
    pub const FIRST_RESERVED: Self = Self(0x7ff0);
    /// The domain that asks (`DOMID_SELF`).
    pub const SELF: Self = Self(0x7ff0);
}

impl std::fmt::Display for DomId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "d{}", self.0)
    }
}

/// Negative results of hypercalls (`errno.h`), without their sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(i64)]
pub enum Errno {
    /// Not permitted.
    #[error("EPERM")]
    Perm = 1,
    /// No such entry.
    #[error("ENOENT")]
    NoEnt = 2,
    /// No such domain.
    #[error("ESRCH")]
    Srch = 3,
    /// Out of memory.
    #[error("ENOMEM")]
    NoMem = 12,
    /// An argument could not be read or written.
    #[error("EFAULT")]
    Fault = 14,
    /// In use.
    #[error("EBUSY")]
    Busy = 16,
    /// Exists already.
    #[error("EEXIST")]
    Exist = 17,
    /// An argument is invalid.
    #[error("EINVAL")]
    Inval = 22,
    /// No space is left.
    #[error("ENOSPC")]
    NoSpc = 28,
    /// A value cannot be represented.
    #[error("ERANGE")]
    Range = 34,
    /// There is no such operation.
    #[error("ENOSYS")]
    NoSys = 38,
    /// The operation is not supported here.
    #[error("EOPNOTSUPP")]
    OpNotSupp = 95,
}

impl Errno {
    /// What the hypercall returns.
    pub const fn result(self) -> i64 {
        -(self as i64)
    }
}

/// Declares the argument of an operation, all of whose bytes are fields.
macro_rules! argument {
    ($(#[$about:meta])* $name:ident { $($(#[$field_about:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$field_about])* pub $field: $type,)* }
    };
}
pub(crate) use argument;
