use std::io::{self, ErrorKind};

use vfio_ioctls::VfioError;

use crate::sysfs::{PciAddress, Sysfs, SysfsError};

/// `EBUSY`: somebody has the group open.
const BUSY: i32 = 16;

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
        group: String,
    },
    /// VFIO failed otherwise.
    #[error("VFIO: {0}")]
    Vfio(#[source] VfioError),
}

impl OpenError {
    /// Why there is no container.
    pub(super) fn of_container(error: VfioError) -> Self {
        match error {
            VfioError::OpenContainer(error) if error.kind() == ErrorKind::PermissionDenied => {
                Self::Permission("vfio".to_owned())
            }
            VfioError::OpenContainer(_) | VfioError::VfioExtension | VfioError::VfioType1V2 => {
                Self::NoVfio
            }
            error => Self::Vfio(error),
        }
    }

    /// Why `function` was not opened.
    pub(super) fn of_device(error: VfioError, function: PciAddress) -> Self {
        match error {
            VfioError::OpenGroup(error, group) if error.kind() == ErrorKind::PermissionDenied => {
                Self::Permission(group)
            }
            VfioError::OpenGroup(error, group) if is_busy(&error) => Self::Busy { function, group },
            error => Self::Vfio(error),
        }
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(BUSY)
}

/// Whether `function` is bound and its group viable, as far as sysfs tells, which says more than VFIO does.
pub(super) fn check(sysfs: &Sysfs, function: PciAddress) -> Result<(), OpenError> {
    let now = sysfs.function(function)?;
    let group = now.group.ok_or(SysfsError::NoIommu(function))?;
    let holders = sysfs.holders(&now)?;
    let driver = now.driver.unwrap_or_else(|| "no driver".to_owned());
    if !crate::sysfs::is_of_vfio(&driver) {
        return Err(OpenError::NotBound { function, driver });
    }
    if !holders.is_empty() {
        return Err(OpenError::Function(SysfsError::GroupNotViable {
            function,
            group,
            holders,
        }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::sysfs::fake::{FakeFunction, FakeSysfs};

    /// What is said of `function` in a machine with three of them, the first two in one group.
    fn said(drivers: [Option<&str>; 2], function: &str) -> String {
        let root = tempfile::tempdir().unwrap();
        let fake = Arc::new(FakeSysfs::new(root.path()).unwrap());
        for driver in ["vfio-pci", "mlx5_vfio_pci", "igbvf"] {
            fake.add_driver(driver).unwrap();
        }
        let group = [Some(14), Some(14), None];
        let drivers = [drivers[0], drivers[1], Some("vfio-pci")];
        for (number, (group, driver)) in group.into_iter().zip(drivers).enumerate() {
            let added = FakeFunction {
                driver: driver.map(str::to_owned),
                group,
                ..FakeFunction::default()
            };
            let address = format!("01:00.{number}").parse().unwrap();
            fake.add(address, &added).unwrap();
        }
        let sysfs = Sysfs::new(root.path(), fake);
        match check(&sysfs, function.parse().unwrap()) {
            Ok(()) => "opened".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn what_is_wrong_with_a_function_is_said_with_its_remedy() {
        let ours = Some("vfio-pci");
        assert_eq!(said([ours, None], "01:00.0"), "opened");
        assert_eq!(said([Some("mlx5_vfio_pci"), ours], "01:00.0"), "opened");
        for (drivers, function, words) in [
            ([ours, None], "05:00.0", "no such function; `sriov list`"),
            ([ours, None], "01:00.2", "in no IOMMU group: switch"),
            (
                [Some("igbvf"), None],
                "01:00.0",
                "igbvf has it, not vfio-pci: run `sriov bind 0000:01:00.0`",
            ),
            (
                [None, None],
                "01:00.0",
                "no driver has it, not vfio-pci: run `sriov bind",
            ),
            (
                [ours, Some("igbvf")],
                "01:00.0",
                "group 14 is shared with 0000:01:00.1 (driver igbvf)",
            ),
        ] {
            let said = said(drivers, function);
            assert!(said.contains(words), "{said}");
        }
    }

    #[test]
    fn what_vfio_answers_is_said_with_its_remedy() {
        let function: PciAddress = "01:00.0".parse().unwrap();
        let group = |error: io::Error| {
            let error = VfioError::OpenGroup(error, "14".to_owned());
            OpenError::of_device(error, function).to_string()
        };
        let container = |error| OpenError::of_container(error).to_string();
        for (said, words) in [
            (
                group(ErrorKind::PermissionDenied.into()),
                "/dev/vfio/14: permission denied",
            ),
            (
                group(io::Error::from_raw_os_error(BUSY)),
                "0000:01:00.0: another process uses its IOMMU group, /dev/vfio/14",
            ),
            (
                group(ErrorKind::NotFound.into()),
                "VFIO: failed to open /dev/vfio/14",
            ),
            (
                container(VfioError::OpenContainer(ErrorKind::PermissionDenied.into())),
                "/dev/vfio/vfio: permission denied",
            ),
            (
                container(VfioError::OpenContainer(ErrorKind::NotFound.into())),
                "modprobe vfio-pci vfio_iommu_type1",
            ),
            (
                container(VfioError::VfioExtension),
                "modprobe vfio-pci vfio_iommu_type1",
            ),
            (
                container(VfioError::VfioApiVersion),
                "VFIO: vfio API version",
            ),
        ] {
            assert!(said.contains(words), "{said}");
        }
    }
}
