use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use kvm_bindings::{
    KVM_DEV_VFIO_FILE, KVM_DEV_VFIO_FILE_ADD, KVM_DEV_VFIO_FILE_DEL, kvm_device_attr,
};
use kvm_ioctls::DeviceFd;

use super::container::Container;
use super::ioctls;
use crate::sysfs::{PciAddress, Sysfs};
use crate::vfio::device::{Holder, SlotFunction};
use crate::vfio::open::OpenError;
use crate::vfio::space::{VfioHost, VfioSpace};

/// VFIO by groups: those that this process has opened, and so may reset the slots of.
pub struct Groups {
    pub(super) sysfs: Sysfs,
    kvm: Option<DeviceFd>,
    open: Mutex<BTreeMap<u32, Weak<Group>>>,
}

impl Groups {
    /// None yet. KVM needs to know them if devices do not snoop caches: `kvm` is KVM's VFIO device.
    pub fn new(sysfs: Sysfs, kvm: Option<DeviceFd>) -> Arc<Self> {
        Arc::new(Self {
            sysfs,
            kvm,
            open: Mutex::default(),
        })
    }

    /// A container without functions.
    pub fn container(self: &Arc<Self>) -> Result<Arc<Container>, OpenError> {
        Container::new(Arc::clone(self))
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u32, Weak<Group>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group with this number, in `container`: the one that is open, or opened now. `function` is for errors.
    pub(super) fn group(
        self: &Arc<Self>,
        number: u32,
        container: &Arc<File>,
        function: PciAddress,
    ) -> Result<Arc<Group>, OpenError> {
        let mut open = self.open();
        if let Some(group) = open.get(&number).and_then(Weak::upgrade) {
            return match Arc::ptr_eq(&group.container, container) {
                true => Ok(group),
                false => Err(OpenError::OtherSpace {
                    function,
                    group: number,
                }),
            };
        }
        let path = Path::new("/dev/vfio").join(number.to_string());
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|source| match source.kind() {
            ErrorKind::PermissionDenied => OpenError::Permission(number.to_string()),
            ErrorKind::ResourceBusy => OpenError::Busy {
                function,
                group: number,
            },
            _ => OpenError::io("open the function's group", source),
        })?;
        if !ioctls::is_viable(&file).map_err(|error| OpenError::io("ask for a group", error))? {
            return Err(OpenError::NotViable {
                function,
                group: number,
            });
        }
        ioctls::set_container(&file, container)
            .map_err(|error| OpenError::io("put a group into a container", error))?;
        let first = !open
            .values()
            .filter_map(Weak::upgrade)
            .any(|group| Arc::ptr_eq(&group.container, container));
        if first {
            ioctls::set_iommu(container)
                .map_err(|error| OpenError::io("make a container one of type 1", error))?;
        }
        let group = Arc::new(Group {
            file,
            container: Arc::clone(container),
            groups: Arc::clone(self),
            functions: Mutex::default(),
        });
        self.tell_kvm(&group, KVM_DEV_VFIO_FILE_ADD)
            .map_err(|error| OpenError::io("tell KVM of a group", error))?;
        open.insert(number, Arc::downgrade(&group));
        Ok(group)
    }

    fn tell_kvm(&self, group: &Group, what: u32) -> io::Result<()> {
        let Some(kvm) = &self.kvm else {
            return Ok(());
        };
        let descriptor = group.file.as_raw_fd();
        let attribute = kvm_device_attr {
            flags: 0,
            group: KVM_DEV_VFIO_FILE,
            attr: what.into(),
            addr: (&raw const descriptor).expose_provenance() as u64,
        };
        Ok(kvm.set_device_attr(&attribute)?)
    }

    /// Who has each of these functions, of which the groups are known.
    pub(super) fn holders(&self, functions: Vec<(PciAddress, u32)>) -> Vec<SlotFunction> {
        let open = self.open();
        let holder =
            |function: &PciAddress, number: &u32| match open.get(number).and_then(Weak::upgrade) {
                Some(group) if group.functions().contains(function) => Holder::Open,
                Some(_) => Holder::Closed,
                None => Holder::Other,
            };
        let holders = functions.into_iter().map(|(function, group)| SlotFunction {
            function,
            holder: holder(&function, &group),
        });
        holders.collect()
    }

    /// The groups with these numbers, without those that this process has not.
    pub(super) fn of(&self, numbers: BTreeSet<u32>) -> Vec<Arc<Group>> {
        let open = self.open();
        let groups = numbers
            .iter()
            .filter_map(|number| open.get(number)?.upgrade());
        groups.collect()
    }
}

impl VfioHost for Arc<Groups> {
    fn space(&self) -> Result<Arc<dyn VfioSpace>, OpenError> {
        Ok(self.container()?)
    }
}

/// A group that is in a container. It leaves that when this is dropped, which nobody may do before its functions are closed.
pub(super) struct Group {
    pub(super) file: File,
    container: Arc<File>,
    groups: Arc<Groups>,
    /// Those that are open.
    functions: Mutex<BTreeSet<PciAddress>>,
}

impl Group {
    pub(super) fn functions(&self) -> MutexGuard<'_, BTreeSet<PciAddress>> {
        self.functions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // KVM would keep the group open, and another process from it. If it refuses, this process's end helps.
        let _ = self.groups.tell_kvm(self, KVM_DEV_VFIO_FILE_DEL);
    }
}
