use std::io;

use super::vm::DEVICE;

/// Why KVM could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// There is no such device.
    #[error(
        "{DEVICE} does not exist: load kvm_intel or kvm_amd, or enable virtualization in the firmware"
    )]
    Missing,
    /// The user may not open it.
    #[error("no permission to open {DEVICE}: join the group `kvm`, or run as root")]
    Permission,
    /// It could not be opened for another reason.
    #[error("cannot open {DEVICE}: {0}")]
    Open(#[source] io::Error),
    /// It answers with an interface version that nobody has made since 2007.
    #[error("{DEVICE} speaks version {0} of its interface, not 12")]
    Version(i32),
    /// It cannot be Xen for a guest.
    #[error(
        "{DEVICE} lacks what --xen needs (it offers {0:#x}): the kernel must be Linux 5.19 or later with CONFIG_KVM_XEN"
    )]
    NoXen(u32),
    /// An operation failed.
    #[error("KVM: {what}: {source}")]
    Call {
        /// What was being done.
        what: &'static str,
        /// What KVM answered.
        source: io::Error,
    },
    /// A region of guest memory has no address in this process.
    #[error("guest memory at {0:#x} is not mapped")]
    NotMapped(u64),
}

impl KvmError {
    /// For `map_err`: says what was being done when KVM refused.
    pub(crate) fn call(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Call {
            what,
            source: error.into(),
        }
    }
}
