//! A folder that looks and behaves like sysfs, for tests and demonstrations: a fake. It knows functions, drivers, IOMMU groups and the
//! rules of `sriov_numvfs`; what it does not know, a write merely changes.

use std::fs;
use std::io::{self, Error, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use pio_mmio_bus::pci::RequesterId;

use super::{Attributes, PciAddress, link};

/// `ENOENT`.
const NO_ENTRY: i32 = 2;
/// `EBUSY`.
const BUSY: i32 = 16;
/// `ENODEV`.
const NO_DEVICE: i32 = 19;
/// `ERANGE`.
const RANGE: i32 = 34;
/// The groups of virtual functions: this plus the requester ID.
const FIRST_GROUP: u32 = 1000;

/// A function to be added.
#[derive(Clone, Debug, Default)]
pub struct FakeFunction {
    /// Device ID; the vendor is 0x8086.
    pub device: u16,
    /// The driver that takes it, and has it at first.
    pub driver: Option<String>,
    /// Its IOMMU group.
    pub group: Option<u32>,
    /// Its virtual functions.
    pub sriov: Option<FakeSriov>,
    /// The name of its network interface. It has a link when it is up.
    pub interface: Option<String>,
}

/// The virtual functions of a function.
#[derive(Clone, Debug, Default)]
pub struct FakeSriov {
    /// How many there can be.
    pub total: u16,
    /// First VF Offset.
    pub offset: u16,
    /// VF Stride.
    pub stride: u16,
    /// Their device ID.
    pub device: u16,
    /// The driver that takes them.
    pub driver: String,
}

/// A fake kernel below a folder. What it knows is in the folder, so that several processes can share it.
#[derive(Debug)]
pub struct FakeSysfs {
    root: PathBuf,
    denied: AtomicBool,
}

impl FakeSysfs {
    /// A tree in `root`, an existing folder; one that is there already is kept.
    pub fn new(root: impl Into<PathBuf>) -> io::Result<Self> {
        let root = root.into();
        for folder in [
            "bus/pci/devices",
            "bus/pci/drivers",
            "class/net",
            "kernel/iommu_groups",
        ] {
            fs::create_dir_all(root.join(folder))?;
        }
        fs::write(root.join("bus/pci/drivers_probe"), "")?;
        Ok(Self {
            root,
            denied: AtomicBool::new(false),
        })
    }

    /// From now on, or no longer, writes are denied as for users other than root.
    pub fn deny(&self, denied: bool) {
        self.denied.store(denied, Ordering::Relaxed);
    }

    /// Loads a driver. It refuses all functions while there is a file `fake_refuses` in its folder.
    pub fn add_driver(&self, name: &str) -> io::Result<()> {
        let folder = self.driver(name);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("unbind"), "")
    }

    /// Plugs a function in.
    pub fn add(&self, address: PciAddress, function: &FakeFunction) -> io::Result<()> {
        let FakeFunction {
            device,
            driver,
            group,
            sriov,
            interface,
        } = function;
        let folder = self.folder(address);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("vendor"), "0x8086\n")?;
        fs::write(folder.join("device"), format!("{device:#06x}\n"))?;
        fs::write(folder.join("class"), "0x020000\n")?;
        fs::write(folder.join("driver_override"), "(null)\n")?;
        // What a kernel finds by device ID.
        fs::write(
            folder.join("fake_driver"),
            driver.as_deref().unwrap_or_default(),
        )?;
        if let Some(group) = group {
            let group = self.root.join(format!("kernel/iommu_groups/{group}"));
            fs::create_dir_all(group.join("devices"))?;
            symlink(&folder, group.join("devices").join(address.to_string()))?;
            symlink(&group, folder.join("iommu_group"))?;
        }
        if let Some(sriov) = sriov {
            fs::write(folder.join("sriov_totalvfs"), sriov.total.to_string())?;
            fs::write(folder.join("sriov_numvfs"), "0\n")?;
            fs::write(folder.join("sriov_drivers_autoprobe"), "1\n")?;
            fs::write(folder.join("sriov_offset"), sriov.offset.to_string())?;
            fs::write(folder.join("sriov_stride"), sriov.stride.to_string())?;
            fs::write(
                folder.join("sriov_vf_device"),
                format!("{:x}", sriov.device),
            )?;
            fs::write(folder.join("fake_vf_driver"), &sriov.driver)?;
        }
        if let Some(interface) = interface {
            fs::create_dir_all(folder.join("net").join(interface))?;
            let class = self.root.join("class/net").join(interface);
            fs::create_dir_all(&class)?;
            fs::write(class.join("flags"), "0x1002\n")?;
            fs::write(class.join("carrier"), "0\n")?;
        }
        self.probe(address)
    }

    fn folder(&self, address: PciAddress) -> PathBuf {
        self.root.join("bus/pci/devices").join(address.to_string())
    }

    fn driver(&self, name: &str) -> PathBuf {
        self.root.join("bus/pci/drivers").join(name)
    }

    /// The driver that the override or the device ID names takes the function, if it is loaded and the function is free.
    fn probe(&self, address: PciAddress) -> io::Result<()> {
        let folder = self.folder(address);
        let named = match self.text(&folder, "driver_override")?.as_str() {
            "" | "(null)" => self.text(&folder, "fake_driver")?,
            named => named.to_owned(),
        };
        let driver = self.driver(&named);
        let takes = !named.is_empty() && driver.exists() && !driver.join("fake_refuses").exists();
        if takes && link(&folder.join("driver")).is_none() {
            symlink(driver, folder.join("driver"))?;
        }
        Ok(())
    }

    fn text(&self, folder: &Path, name: &str) -> io::Result<String> {
        Ok(fs::read_to_string(folder.join(name))?.trim().to_owned())
    }

    fn number<T: std::str::FromStr>(&self, folder: &Path, name: &str) -> io::Result<T> {
        let text = self.text(folder, name)?;
        text.parse()
            .map_err(|_| Error::from(ErrorKind::InvalidData))
    }

    fn set_count(&self, folder: &Path, wanted: &str) -> io::Result<()> {
        let wanted: u16 = wanted
            .parse()
            .map_err(|_| Error::from(ErrorKind::InvalidInput))?;
        let now: u16 = self.number(folder, "sriov_numvfs")?;
        if wanted > self.number(folder, "sriov_totalvfs")? {
            return Err(Error::from_raw_os_error(RANGE));
        }
        if wanted == now {
            return Ok(());
        }
        if link(&folder.join("driver")).is_none() {
            return Err(Error::from_raw_os_error(NO_ENTRY));
        }
        if wanted != 0 && now != 0 {
            return Err(Error::from_raw_os_error(BUSY));
        }
        for index in 0..now {
            self.unplug(&folder.join(format!("virtfn{index}")))?;
        }
        for index in 0..wanted {
            self.plug(folder, index)?;
        }
        fs::write(folder.join("sriov_numvfs"), wanted.to_string())
    }

    fn plug(&self, physical: &Path, index: u16) -> io::Result<()> {
        let name = physical.file_name().and_then(|name| name.to_str());
        let address: Option<PciAddress> = name.and_then(|name| name.parse().ok());
        let address = address.ok_or(ErrorKind::InvalidData)?;
        let offset: u16 = self.number(physical, "sriov_offset")?;
        let stride: u16 = self.number(physical, "sriov_stride")?;
        let id = address
            .id
            .0
            .wrapping_add(offset)
            .wrapping_add(stride.wrapping_mul(index));
        let function = PciAddress {
            id: RequesterId(id),
            ..address
        };
        let device = u16::from_str_radix(&self.text(physical, "sriov_vf_device")?, 16);
        let probed = self.text(physical, "sriov_drivers_autoprobe")? == "1";
        let driver = self.text(physical, "fake_vf_driver")?;
        self.add(
            function,
            &FakeFunction {
                device: device.map_err(|_| ErrorKind::InvalidData)?,
                driver: probed.then(|| driver.clone()),
                group: Some(FIRST_GROUP + u32::from(id)),
                ..FakeFunction::default()
            },
        )?;
        let folder = self.folder(function);
        fs::write(folder.join("fake_driver"), driver)?;
        fs::write(folder.join("sriov_vf_msix_count"), "")?;
        symlink(physical, folder.join("physfn"))?;
        symlink(&folder, physical.join(format!("virtfn{index}")))
    }

    fn unplug(&self, link: &Path) -> io::Result<()> {
        let folder = fs::read_link(link)?;
        if let Ok(group) = fs::read_link(folder.join("iommu_group")) {
            fs::remove_dir_all(group)?;
        }
        fs::remove_dir_all(folder)?;
        fs::remove_file(link)
    }

    fn unbind(&self, driver: Option<&Path>, address: &str) -> io::Result<()> {
        let place = self
            .root
            .join("bus/pci/devices")
            .join(address)
            .join("driver");
        if driver.is_none() || fs::read_link(&place).ok().as_deref() != driver {
            return Err(Error::from_raw_os_error(NO_DEVICE));
        }
        fs::remove_file(place)
    }
}

impl Attributes for FakeSysfs {
    fn write(&self, path: &Path, value: &str) -> io::Result<()> {
        if self.denied.load(Ordering::Relaxed) {
            return Err(ErrorKind::PermissionDenied.into());
        }
        if !path.exists() {
            return Err(ErrorKind::NotFound.into());
        }
        let folder = path.parent();
        match (path.file_name().and_then(|name| name.to_str()), folder) {
            (Some("sriov_numvfs"), Some(folder)) => self.set_count(folder, value.trim()),
            (Some("unbind"), _) => self.unbind(folder, value.trim()),
            (Some("drivers_probe"), _) => {
                let address = value.trim().parse();
                self.probe(address.map_err(|_| ErrorKind::InvalidInput)?)
            }
            (Some("flags"), Some(interface)) => {
                let up = u32::from_str_radix(value.trim().trim_start_matches("0x"), 16);
                let up = up.map_err(|_| ErrorKind::InvalidInput)? & 1;
                fs::write(interface.join("carrier"), up.to_string())?;
                fs::write(path, value)
            }
            _ => fs::write(path, value),
        }
    }
}
