use serde::Serialize;

use super::{PciAddress, Sysfs, SysfsError, link, names, number, read};

/// A function of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Function {
    /// Its name.
    pub address: PciAddress,
    /// Vendor ID; of a virtual function its physical one's.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Base class, subclass and programming interface in bits 23:0.
    pub class: u32,
    /// The driver that has it.
    pub driver: Option<String>,
    /// The only driver that may have it.
    pub driver_override: Option<String>,
    /// Its IOMMU group.
    pub group: Option<u32>,
    /// The others in the group.
    pub group_others: Vec<PciAddress>,
    /// Its network interfaces.
    pub interfaces: Vec<String>,
    /// What it is to SR-IOV.
    pub role: Role,
}

/// What a function is to SR-IOV.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It has no virtual functions and is none.
    Plain,
    /// It has virtual functions.
    Physical {
        /// How many there can be.
        total: u16,
        /// Those that are enabled, in the order of their numbers.
        functions: Vec<PciAddress>,
        /// Whether drivers are bound to virtual functions when they appear.
        autoprobe: bool,
        /// How many MSI-X vectors can be distributed over the virtual functions, if the driver can.
        msix: Option<u32>,
    },
    /// It is a virtual function.
    Virtual {
        /// Whose.
        physical: PciAddress,
    },
}

impl Sysfs {
    /// All functions of this machine, by address.
    pub fn functions(&self) -> Result<Vec<Function>, SysfsError> {
        let mut addresses: Vec<PciAddress> = names(&self.bus().join("devices"))?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        addresses.sort();
        let mut functions = Vec::new();
        for address in addresses {
            match self.function(address) {
                Ok(function) => functions.push(function),
                // It has gone since.
                Err(SysfsError::NoFunction(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(functions)
    }

    /// One function.
    pub fn function(&self, address: PciAddress) -> Result<Function, SysfsError> {
        let folder = self.folder(address);
        let missing = || SysfsError::NoFunction(address);
        let group = link(&folder.join("iommu_group")).and_then(|group| group.parse().ok());
        let mut group_others: Vec<PciAddress> = Vec::new();
        if group.is_some() {
            let others = names(&folder.join("iommu_group/devices"))?;
            group_others.extend(others.iter().flat_map(|name| name.parse::<PciAddress>()));
            group_others.retain(|&other| other != address);
        }
        let driver_override = read(&folder.join("driver_override"))?;
        Ok(Function {
            address,
            vendor: number(&folder.join("vendor"))?.ok_or_else(missing)?,
            device: number(&folder.join("device"))?.ok_or_else(missing)?,
            class: number(&folder.join("class"))?.ok_or_else(missing)?,
            driver: link(&folder.join("driver")),
            driver_override: driver_override.filter(|name| !name.is_empty() && name != "(null)"),
            group,
            group_others,
            interfaces: names(&folder.join("net"))?,
            role: self.role(address)?,
        })
    }

    fn role(&self, address: PciAddress) -> Result<Role, SysfsError> {
        let folder = self.folder(address);
        if let Some(physical) = link(&folder.join("physfn")).and_then(|name| name.parse().ok()) {
            return Ok(Role::Virtual { physical });
        }
        let Some(total) = number(&folder.join("sriov_totalvfs"))? else {
            return Ok(Role::Plain);
        };
        let enabled: u16 = number(&folder.join("sriov_numvfs"))?.unwrap_or(0);
        let functions = (0..enabled)
            .filter_map(|index| link(&folder.join(format!("virtfn{index}")))?.parse().ok());
        Ok(Role::Physical {
            total,
            functions: functions.collect(),
            autoprobe: number(&folder.join("sriov_drivers_autoprobe"))? != Some(0_u8),
            msix: number(&folder.join("sriov_vf_total_msix"))?,
        })
    }
}
