use std::thread;
use std::time::{Duration, Instant};

use super::{Function, PciAddress, Role, Sysfs, SysfsError, number};

/// `ENOENT`: the physical function's driver cannot enable virtual functions.
const NO_ENTRY: i32 = 2;
/// `EBUSY`: there are virtual functions, or a change is under way.
const BUSY: i32 = 16;
/// How long [`Sysfs::wait_for_link`] sleeps between two looks.
const LOOK: Duration = Duration::from_millis(50);
/// The bit of an interface's flags that brings it up (`IFF_UP`).
const UP: u32 = 1;

impl Sysfs {
    /// Enables `count` virtual functions of `physical`, and gives their addresses. If another number of them exists, those are disabled
    /// before, since the kernel changes to and from 0 only: whoever uses one loses it.
    pub fn enable(&self, physical: PciAddress, count: u16) -> Result<Vec<PciAddress>, SysfsError> {
        let (total, functions) = self.physical(physical)?;
        if count > total {
            return Err(SysfsError::TooMany {
                function: physical,
                wanted: count,
                total,
            });
        }
        if functions.len() == usize::from(count) {
            return Ok(functions);
        }
        if !functions.is_empty() {
            self.set_count(physical, 0)?;
        }
        if count != 0 {
            self.set_count(physical, count)?;
        }
        Ok(self.physical(physical)?.1)
    }

    /// Disables all virtual functions of `physical`.
    pub fn disable(&self, physical: PciAddress) -> Result<(), SysfsError> {
        self.enable(physical, 0).map(drop)
    }

    /// Whether drivers are bound to virtual functions of `physical` when they appear. Without, they are free for `vfio-pci`.
    pub fn set_autoprobe(&self, physical: PciAddress, autoprobe: bool) -> Result<(), SysfsError> {
        self.physical(physical)?;
        let path = self.folder(physical).join("sriov_drivers_autoprobe");
        self.write(path, if autoprobe { "1" } else { "0" })
    }

    /// Gives a virtual function this many MSI-X vectors; 0 is the device's own choice. No driver may have the function, and the physical
    /// function's driver must be able to.
    pub fn set_msix_count(&self, function: PciAddress, count: u32) -> Result<(), SysfsError> {
        let path = self.folder(function).join("sriov_vf_msix_count");
        self.write(path, &count.to_string())
    }

    /// Brings the network interfaces of a function up. Virtual functions of many cards have no link, and their drivers find a device
    /// in reset, before the physical function's interface is up and [has a link](Self::wait_for_link).
    pub fn bring_up(&self, physical: PciAddress) -> Result<(), SysfsError> {
        let Function { interfaces, .. } = self.function(physical)?;
        if interfaces.is_empty() {
            return Err(SysfsError::NoInterface(physical));
        }
        for interface in interfaces {
            let path = self.root.join("class/net").join(interface).join("flags");
            let flags: u32 = number(&path)?.unwrap_or(0);
            self.write(path, &format!("{:#x}", flags | UP))?;
        }
        Ok(())
    }

    /// Returns when all network interfaces of a function have a link, at once if it has none. The physical function of many cards loses its
    /// link for seconds when its interface is brought up, and again when virtual functions are enabled.
    pub fn wait_for_link(&self, function: PciAddress, limit: Duration) -> Result<(), SysfsError> {
        let begun = Instant::now();
        for interface in self.function(function)?.interfaces {
            let path = self.root.join("class/net").join(&interface).join("carrier");
            // An interface that is down has a carrier that cannot be read.
            while !matches!(number(&path), Ok(Some(1_u8))) {
                if begun.elapsed() >= limit {
                    return Err(SysfsError::NoLink {
                        function,
                        interface,
                        limit,
                    });
                }
                thread::sleep(LOOK);
            }
        }
        Ok(())
    }

    /// How many virtual functions there can be, and those that exist.
    fn physical(&self, address: PciAddress) -> Result<(u16, Vec<PciAddress>), SysfsError> {
        match self.function(address)?.role {
            Role::Physical {
                total, functions, ..
            } => Ok((total, functions)),
            Role::Virtual { physical } => Err(SysfsError::IsVirtual {
                function: address,
                physical,
            }),
            Role::Plain => Err(SysfsError::NoSriov(address)),
        }
    }

    fn set_count(&self, physical: PciAddress, count: u16) -> Result<(), SysfsError> {
        let path = self.folder(physical).join("sriov_numvfs");
        let written = self.write(path, &count.to_string());
        written.map_err(|error| match error.code() {
            Some(NO_ENTRY) => SysfsError::NoPhysicalDriver(physical),
            Some(BUSY) => SysfsError::Busy(physical),
            _ => error,
        })
    }
}
