use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use signal_hook::iterator::Signals;
use signal_hook::low_level;

use super::{Function, PciAddress, Role, Sysfs, SysfsError};

/// Drivers that do not stop VFIO from giving a group away: they do no DMA, or belong to it.
const HARMLESS: [&str; 2] = ["pci-stub", "pcieport"];

/// Whether a driver is `vfio-pci` or one of its kind: some are named after the devices they are for.
pub(crate) fn is_of_vfio(driver: &str) -> bool {
    driver.contains("vfio")
}

impl Sysfs {
    /// Binds `function` to `driver`, `vfio-pci` or one of its kind, and keeps others away from it. It must be in an IOMMU group, and
    /// nobody else in the group may be used by the host.
    pub fn bind(&self, function: PciAddress, driver: &str) -> Result<(), SysfsError> {
        let now = self.function(function)?;
        let group = now.group.ok_or(SysfsError::NoIommu(function))?;
        let holders = self.holders(&now)?;
        if !holders.is_empty() {
            return Err(SysfsError::GroupNotViable {
                function,
                group,
                holders,
            });
        }
        if !self.driver(driver).exists() {
            return Err(SysfsError::NoDriver(driver.to_owned()));
        }
        if now.driver.as_deref() == Some(driver) {
            return Ok(());
        }
        self.set_override(function, Some(driver))?;
        self.rebind(&now, Some(driver))
    }

    /// Gives `function` back to the driver that takes it of its own accord, if any.
    pub fn release(&self, function: PciAddress) -> Result<(), SysfsError> {
        let now = self.function(function)?;
        self.set_override(function, None)?;
        self.unbind(&now)?;
        self.probe(function)
    }

    /// Who else in the IOMMU group of `function` is used by the host, and by which driver: as long as there is anyone, VFIO does not
    /// give the group away.
    pub fn holders(&self, function: &Function) -> Result<Vec<(PciAddress, String)>, SysfsError> {
        let mut holders = Vec::new();
        for &other in &function.group_others {
            let driver = self.function(other)?.driver;
            let held =
                |driver: &String| !is_of_vfio(driver) && !HARMLESS.contains(&driver.as_str());
            holders.extend(driver.filter(held).map(|driver| (other, driver)));
        }
        Ok(holders)
    }

    /// The physical function of a virtual one, if VFIO's driver has it too: who opens the virtual one has to name the VF token that was set with it.
    pub fn token_holder(&self, function: &Function) -> Result<Option<PciAddress>, SysfsError> {
        let Role::Virtual { physical } = function.role else {
            return Ok(None);
        };
        let driver = self.function(physical)?.driver;
        Ok(driver.filter(|driver| is_of_vfio(driver)).map(|_| physical))
    }

    fn set_override(&self, function: PciAddress, driver: Option<&str>) -> Result<(), SysfsError> {
        let path = self.folder(function).join("driver_override");
        self.write(path, driver.unwrap_or("\n"))
    }

    fn unbind(&self, function: &Function) -> Result<(), SysfsError> {
        match &function.driver {
            Some(driver) => {
                let path = self.driver(driver).join("unbind");
                self.write(path, &function.address.to_string())
            }
            None => Ok(()),
        }
    }

    fn probe(&self, function: PciAddress) -> Result<(), SysfsError> {
        self.write(self.bus().join("drivers_probe"), &function.to_string())
    }

    /// Takes the function from its driver and lets the one that its override names take it.
    fn rebind(&self, before: &Function, driver: Option<&str>) -> Result<(), SysfsError> {
        self.unbind(before)?;
        let Some(driver) = driver else {
            return Ok(());
        };
        let probed = self.probe(before.address);
        let now = self.function(before.address)?.driver;
        if now.as_deref() == Some(driver) {
            return Ok(());
        }
        probed?;
        Err(SysfsError::NotBound {
            function: before.address,
            driver: driver.to_owned(),
            now: now.unwrap_or_else(|| "nobody".to_owned()),
        })
    }

    /// Makes driver and override what they were in `before`.
    fn restore(&self, before: &Function) -> Result<(), SysfsError> {
        let now = self.function(before.address)?;
        if now.driver != before.driver {
            // A driver that was bound by hand is bound by override, which goes below.
            self.set_override(before.address, before.driver.as_deref())?;
            self.rebind(&now, before.driver.as_deref())?;
        }
        self.set_override(before.address, before.driver_override.as_deref())
    }
}

/// Functions that are bound to another driver for a time. Each goes back to the driver it had, or to none, when this is dropped, and, if
/// asked for, when a signal ends the process. Nobody can catch `SIGKILL`: `sriov release` mends what it leaves behind.
pub struct Bindings {
    sysfs: Sysfs,
    /// As they were, in the order in which they were bound.
    before: Arc<Mutex<Vec<Function>>>,
}

impl Bindings {
    /// None yet.
    pub fn new(sysfs: Sysfs) -> Self {
        Self {
            sysfs,
            before: Arc::default(),
        }
    }

    /// Binds `function` to `driver`, see [`Sysfs::bind`]. If that fails, the function is given back.
    pub fn bind(&self, function: PciAddress, driver: &str) -> Result<(), SysfsError> {
        let mut before = lock(&self.before);
        let now = self.sysfs.function(function)?;
        let bound = self.sysfs.bind(function, driver);
        if bound.is_err() {
            // What is reported is why it was not bound; an untouched function is restored in any case.
            let _ = self.sysfs.restore(&now);
        } else {
            before.push(now);
        }
        bound
    }

    /// Gives all functions back now, the last one first. Tries all, and reports the first error.
    pub fn restore(&self) -> Result<(), SysfsError> {
        restore(&self.sysfs, &self.before)
    }

    /// Gives all functions back also when one of `signals` ends the process: on a thread of its own, which then lets the signal do
    /// what it does by default. Meant for programs that do not handle these signals themselves.
    pub fn restore_on_signals(&self, signals: &[i32]) -> io::Result<()> {
        let mut signals = Signals::new(signals)?;
        let (sysfs, before) = (self.sysfs.clone(), Arc::downgrade(&self.before));
        thread::Builder::new()
            .name("restore drivers".to_owned())
            .spawn(move || {
                for signal in signals.forever() {
                    if let Some(before) = before.upgrade() {
                        let _ = restore(&sysfs, &before);
                    }
                    // It fails for signals that cannot be caught in the first place.
                    let _ = low_level::emulate_default_handler(signal);
                }
            })?;
        Ok(())
    }
}

impl Drop for Bindings {
    fn drop(&mut self) {
        // There is nobody to report to; `restore` does.
        let _ = self.restore();
    }
}

fn lock(before: &Mutex<Vec<Function>>) -> MutexGuard<'_, Vec<Function>> {
    before.lock().unwrap_or_else(PoisonError::into_inner)
}

fn restore(sysfs: &Sysfs, before: &Mutex<Vec<Function>>) -> Result<(), SysfsError> {
    let mut first = Ok(());
    while let Some(function) = lock(before).pop() {
        first = first.and(sysfs.restore(&function));
    }
    first
}
