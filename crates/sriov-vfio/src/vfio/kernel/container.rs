use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vfio_bindings::bindings::vfio::{VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE};

use super::function::OpenFunction;
use super::groups::Groups;
use super::{ioctls, refusal};
use crate::sysfs::PciAddress;
use crate::vfio::device::VfioDevice;
use crate::vfio::memory::HostMemory;
use crate::vfio::open::OpenError;
use crate::vfio::space::{Access, DmaSpace, VfioSpace};
use crate::vfio::token::VfToken;

/// A container: the functions that are opened in it share its I/O address space.
pub struct Container {
    file: Arc<File>,
    groups: Arc<Groups>,
    /// What devices may reach is kept.
    mapped: Mutex<BTreeMap<u64, HostMemory>>,
}

impl Container {
    pub(super) fn new(groups: Arc<Groups>) -> Result<Arc<Self>, OpenError> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/vfio/vfio");
        let file = file.map_err(|source| match source.kind() {
            ErrorKind::PermissionDenied => OpenError::Permission("vfio".to_owned()),
            _ => OpenError::NoVfio,
        })?;
        if !ioctls::is_type1(&file) {
            return Err(OpenError::NoVfio);
        }
        Ok(Arc::new(Self {
            file: Arc::new(file),
            groups,
            mapped: Mutex::default(),
        }))
    }

    fn mapped(&self) -> MutexGuard<'_, BTreeMap<u64, HostMemory>> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VfioSpace for Container {
    /// The kernel resets the function when it is opened, and again when the last descriptor and mapping of it are gone, if it can be reset.
    fn open(
        self: Arc<Self>,
        function: PciAddress,
        token: Option<VfToken>,
    ) -> Result<Arc<dyn VfioDevice>, OpenError> {
        let number = refusal::check(&self.groups.sysfs, function)?;
        let group = self.groups.group(number, &self.file, function)?;
        let name = match token {
            Some(token) => format!("{function} vf_token={token}"),
            None => function.to_string(),
        };
        // A name without a zero in it.
        let name = CString::new(name).unwrap_or_default();
        let file = ioctls::open_function(&group.file, &name)
            .map_err(|error| OpenError::of_function(error, function, token.is_some()))?;
        Ok(Arc::new(OpenFunction::new(file, function, group, self)?))
    }
}

impl Container {
    pub(super) fn groups(&self) -> &Groups {
        &self.groups
    }
}

impl DmaSpace for Container {
    fn map(&self, iova: u64, memory: &HostMemory, access: Access) -> io::Result<()> {
        let mut flags = 0;
        if access.contains(Access::READ) {
            flags |= VFIO_DMA_MAP_FLAG_READ;
        }
        if access.contains(Access::WRITE) {
            flags |= VFIO_DMA_MAP_FLAG_WRITE;
        }
        let mut mapped = self.mapped();
        ioctls::map(&self.file, iova, memory, flags)?;
        mapped.insert(iova, memory.clone());
        Ok(())
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<()> {
        let last = size.checked_sub(1).and_then(|rest| iova.checked_add(rest));
        let last = last.ok_or(ErrorKind::InvalidInput)?;
        let mut mapped = self.mapped();
        let unmapped = ioctls::unmap(&self.file, iova, size)?;
        mapped.retain(|first, _| !(iova..=last).contains(first));
        match unmapped == size {
            true => Ok(()),
            false => Err(ErrorKind::InvalidInput.into()),
        }
    }
}
