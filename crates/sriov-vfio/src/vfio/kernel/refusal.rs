use std::io;

use crate::sysfs::{PciAddress, Sysfs, SysfsError};
use crate::vfio::open::OpenError;

impl OpenError {
    pub(super) const fn io(what: &'static str, source: io::Error) -> Self {
        Self::Io { what, source }
    }

    /// Why VFIO did not open `function`, with a token or without.
    pub(super) fn of_function(source: io::Error, function: PciAddress, token: bool) -> Self {
        match source.kind() {
            io::ErrorKind::PermissionDenied => Self::Token(function),
            io::ErrorKind::InvalidInput if token => Self::NoToken(function),
            _ => Self::io("open a function", source),
        }
    }
}

/// The group of `function`, if that is bound and the group viable, as far as sysfs tells, which says more than VFIO does.
pub(super) fn check(sysfs: &Sysfs, function: PciAddress) -> Result<u32, OpenError> {
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
    Ok(group)
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
            Ok(_) => "opened".to_owned(),
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
    fn a_refused_token_is_told_from_one_that_nobody_asked_for() {
        let function: PciAddress = "01:00.0".parse().unwrap();
        let said = |errno: i32, token| {
            let error = io::Error::from_raw_os_error(errno);
            OpenError::of_function(error, function, token).to_string()
        };
        // EACCES, EINVAL.
        for token in [false, true] {
            assert!(said(13, token).contains("those only who name its VF token"));
        }
        assert!(said(22, true).contains("takes no VF token"));
        assert!(said(22, false).starts_with("VFIO: cannot open a function: "));
    }
}
