//! The VM and its vCPUs as KVM objects, and all of this crate's `unsafe`: the rest of KVM's interface goes
//! through the safe calls of `kvm-ioctls`.

mod error;
mod stats;
mod vcpu;
mod vm;
mod xen;

pub use error::KvmError;
pub use stats::{Stat, StatsError, read_stats};
pub use vcpu::{PortAccess, Vcpu};
pub use vm::{Irqchip, Vm, Window, open};
pub use xen::{Hypercall, Thread, XenSend, XenVcpu, ram_frame};
