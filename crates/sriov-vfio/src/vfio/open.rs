use std::io;

use crate::sysfs::{PciAddress, SysfsError};

/// Why a function could not be opened through VFIO, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no such function, it is in no IOMMU group, or others in its group are used by the host.
    #[error(transparent)]
    Function(#[from] SysfsError),
    /// Another driver has it, or none.
    #[error("{function}: {driver} has it, not vfio-pci: run `sriov bind {function}`")]
    NotBound {
        /// The function.
        function: PciAddress,
        /// Who has it.
        driver: String,
    },
    /// The kernel's VFIO is not there.
    #[error("/dev/vfio/vfio: no VFIO of type 1: modprobe vfio-pci vfio_iommu_type1")]
    NoVfio,
    /// A file of VFIO may not be opened.
    #[error("/dev/vfio/{0}: permission denied: run as root, or give the file to your user")]
    Permission(String),
    /// Another process uses the group.
    #[error("{function}: another process uses its IOMMU group, /dev/vfio/{group}")]
    Busy {
        /// The function.
        function: PciAddress,
        /// The number of its group.
        group: u32,
    },
    /// Another I/O address space of this process has the group.
    #[error(
        "{function}: another I/O address space has its IOMMU group, {group}: a group is in one"
    )]
    OtherSpace {
        /// The function.
        function: PciAddress,
        /// The number of its group.
        group: u32,
    },
    /// The host uses others in the group after all.
    #[error(
        "{function}: the host uses others in its IOMMU group, {group}: release them from their drivers, or bind them too"
    )]
    NotViable {
        /// The function.
        function: PciAddress,
        /// The number of its group.
        group: u32,
    },
    /// It is a virtual function whose physical one is bound to `vfio-pci` too, or a physical one whose virtual ones are in use.
    #[error(
        "{0}: is opened by those only who name its VF token, vf-token=UUID: that which the user of the physical function has set"
    )]
    Token(PciAddress),
    /// It takes no token: it is a virtual function whose physical one is the host's, or has nothing to do with any.
    #[error("{0}: takes no VF token, since vfio-pci has no physical function of it: leave it out")]
    NoToken(PciAddress),
    /// VFIO failed otherwise.
    #[error("VFIO: cannot {what}: {source}")]
    Io {
        /// What it was asked to do.
        what: &'static str,
        /// Why it did not.
        source: io::Error,
    },
}
