use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::PciAddress;

/// Why functions could not be listed or managed, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SysfsError {
    /// No such function.
    #[error("{0}: there is no such function; `sriov list` names those that are there")]
    NoFunction(PciAddress),
    /// It has no SR-IOV capability, or the kernel was built without.
    #[error(
        "{0}: no SR-IOV: the function has no such capability, the firmware switched it off, or the kernel lacks CONFIG_PCI_IOV"
    )]
    NoSriov(PciAddress),
    /// A virtual function was named where a physical one is needed.
    #[error("{function}: is a virtual function; name the physical one, {physical}")]
    IsVirtual {
        /// What was named.
        function: PciAddress,
        /// Whose it is.
        physical: PciAddress,
    },
    /// More virtual functions than there can be.
    #[error("{function}: {wanted} virtual functions, the device has {total}")]
    TooMany {
        /// The physical function.
        function: PciAddress,
        /// What was asked for.
        wanted: u16,
        /// `sriov_totalvfs`.
        total: u16,
    },
    /// The physical function has no driver, or one that cannot enable virtual functions.
    #[error(
        "{0}: its driver does not enable virtual functions: bind the function to the one that does, or set the parameter enable_sriov of vfio-pci"
    )]
    NoPhysicalDriver(PciAddress),
    /// Somebody else enables or disables virtual functions at the same time, or uses them.
    #[error(
        "{0}: its virtual functions are being changed or used by somebody else: release them and try again"
    )]
    Busy(PciAddress),
    /// It is in no IOMMU group.
    #[error(
        "{0}: in no IOMMU group: switch the IOMMU on in the firmware and boot with intel_iommu=on or amd_iommu=on"
    )]
    NoIommu(PciAddress),
    /// Others in its group are used by the host.
    #[error("{function}: IOMMU group {group} is shared with {}: release them from their drivers, or bind them too", Holders(.holders))]
    GroupNotViable {
        /// What was to be bound.
        function: PciAddress,
        /// The number of its group.
        group: u32,
        /// Who else is in it and has a driver of the host.
        holders: Vec<(PciAddress, String)>,
    },
    /// The driver is not loaded.
    #[error("driver {0} is not loaded: modprobe {0}")]
    NoDriver(String),
    /// The driver did not take the function.
    #[error("{function}: driver {driver} did not take it, {now} has it; dmesg may say why")]
    NotBound {
        /// The function.
        function: PciAddress,
        /// Who should have taken it.
        driver: String,
        /// Who has it.
        now: String,
    },
    /// The function has no network interface.
    #[error("{0}: has no network interface")]
    NoInterface(PciAddress),
    /// A network interface of the function has no link.
    #[error(
        "{function}: its network interface {interface} has no link after {limit:?}: is it up, with a cable in it?"
    )]
    NoLink {
        /// The function.
        function: PciAddress,
        /// The interface.
        interface: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// Only root may write there.
    #[error("{0}: permission denied: run as root")]
    Permission(PathBuf),
    /// A file of sysfs could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of sysfs does not hold what it should.
    #[error("{path}: reads {text:?}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What it reads.
        text: String,
    },
}

impl SysfsError {
    pub(super) fn io(path: PathBuf, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Permission(path),
            _ => Self::Io { path, source },
        }
    }

    /// What the operating system said, if it did.
    pub(super) fn code(&self) -> Option<i32> {
        match self {
            Self::Io { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

struct Holders<'a>(&'a [(PciAddress, String)]);

impl fmt::Display for Holders<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (address, driver)) in self.0.iter().enumerate() {
            let comma = if number == 0 { "" } else { ", " };
            write!(f, "{comma}{address} (driver {driver})")?;
        }
        Ok(())
    }
}
