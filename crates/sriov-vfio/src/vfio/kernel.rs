//! The kernel's VFIO, by groups and containers of type 1 (v2), over vfio-ioctls.
//!
//! vfio-ioctls maps all memory for reading and writing, does not say when an access or a reset failed, and takes it for success when the host
//! has fewer vectors than were asked for: for these the ioctls are made here, on the file descriptors that it holds.
#![expect(unsafe_code, reason = "ioctls on VFIO's file descriptors")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vfio_bindings::bindings::vfio::{
    VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE,
    VFIO_MIGRATION_STOP_COPY, vfio_iommu_type1_dma_map, vfio_irq_set,
};
use vfio_ioctls::{VfioContainer, VfioDeviceFd, VfioError, VfioRegionInfoCap};
use vm_memory::{FileOffset, MmapRegion};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_ptr, ioctl_with_ref};

use ioctls::{VFIO_DEVICE_RESET, VFIO_DEVICE_SET_IRQS, VFIO_IOMMU_MAP_DMA};

use super::device::{Access, DmaSpace, Interrupt, Region, RegionIndex, VfioDevice};
use super::memory::HostMemory;
use super::migration::{DeviceState, Migration};
use super::open::{self, OpenError};
use crate::sysfs::{PciAddress, Sysfs};

/// The ioctls that are made here (Linux, linux/vfio.h).
mod ioctls {
    use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};
    use vmm_sys_util::ioctl_io_nr;

    ioctl_io_nr!(VFIO_DEVICE_SET_IRQS, VFIO_TYPE as u32, VFIO_BASE + 10);
    ioctl_io_nr!(VFIO_DEVICE_RESET, VFIO_TYPE as u32, VFIO_BASE + 11);
    ioctl_io_nr!(VFIO_IOMMU_MAP_DMA, VFIO_TYPE as u32, VFIO_BASE + 13);
}

/// The flag of a region that may be mapped (`VFIO_REGION_INFO_FLAG_MMAP`).
const MAPPABLE: u32 = 1 << 2;

/// A container: the devices that are opened in it share its I/O address space.
pub struct Container {
    inner: Arc<VfioContainer>,
    mapped: Mutex<BTreeMap<u64, HostMemory>>,
}

impl Container {
    /// A container without devices. KVM needs to know its groups if devices do not snoop caches: `kvm` is KVM's VFIO device.
    pub fn new(kvm: Option<Arc<VfioDeviceFd>>) -> Result<Arc<Self>, OpenError> {
        let inner = VfioContainer::new(kvm).map_err(OpenError::of_container)?;
        Ok(Arc::new(Self {
            inner: Arc::new(inner),
            mapped: Mutex::default(),
        }))
    }

    /// Opens a function, which must be bound to `vfio-pci`; its group must be viable and nobody else's. The kernel resets the function
    /// when it is opened, and again when the last descriptor and mapping of it are gone, if it can be reset.
    pub fn open(
        self: &Arc<Self>,
        sysfs: &Sysfs,
        function: PciAddress,
    ) -> Result<Arc<Device>, OpenError> {
        open::check(sysfs, function)?;
        let failed = |error| OpenError::of_device(error, function);
        let device =
            vfio_ioctls::VfioDevice::new(&sysfs.folder(function), self.inner.clone(), false)
                .map_err(failed)?;
        // SAFETY: the descriptor is `device`'s, which is alive during the call.
        let file = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
        let file = file
            .try_clone_to_owned()
            .map_err(|_| failed(VfioError::VfioDeviceDupFd))?;
        Ok(Arc::new(Device {
            file: file.into(),
            device,
            _container: Arc::clone(self),
        }))
    }

    fn mapped(&self) -> MutexGuard<'_, BTreeMap<u64, HostMemory>> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
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
        let argument = vfio_iommu_type1_dma_map {
            argsz: u32::try_from(size_of::<vfio_iommu_type1_dma_map>()).unwrap_or(0),
            flags,
            vaddr: memory.address(),
            iova,
            size: memory.size(),
        };
        let mut mapped = self.mapped();
        // SAFETY: the argument is as long as it says. The memory belongs to a guest, so that nothing in this process relies on its
        // contents; it is kept below for as long as devices may reach it.
        let result = unsafe { ioctl_with_ref(&*self.inner, VFIO_IOMMU_MAP_DMA(), &argument) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        mapped.insert(iova, memory.clone());
        Ok(())
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<()> {
        let length = usize::try_from(size).map_err(|_| ErrorKind::InvalidInput)?;
        let last = size.checked_sub(1).and_then(|rest| iova.checked_add(rest));
        let last = last.ok_or(ErrorKind::InvalidInput)?;
        let mut mapped = self.mapped();
        self.inner
            .vfio_dma_unmap(iova, length)
            .map_err(io::Error::other)?;
        mapped.retain(|first, _| !(iova..=last).contains(first));
        Ok(())
    }
}

/// A function that was opened.
pub struct Device {
    /// Closed before `device`, which gives the group back.
    file: File,
    device: vfio_ioctls::VfioDevice,
    _container: Arc<Container>,
}

impl Device {
    /// Where in the file an access is, if it is inside the region.
    fn position(&self, index: RegionIndex, offset: u64, length: usize) -> io::Result<u64> {
        let size = self.device.get_region_size(index.number());
        let inside = u64::try_from(length)
            .ok()
            .and_then(|length| offset.checked_add(length));
        if inside.is_none_or(|end| end > size) {
            return Err(ErrorKind::InvalidInput.into());
        }
        let start = self.device.get_region_offset(index.number());
        start
            .checked_add(offset)
            .ok_or(ErrorKind::InvalidInput.into())
    }

    /// Has eventfds do `action` for the first interrupts of a kind; without any, the kind is switched off.
    fn set_irqs(&self, interrupt: Interrupt, action: u32, eventfds: &[&EventFd]) -> io::Result<()> {
        let data = match eventfds {
            [] => VFIO_IRQ_SET_DATA_NONE,
            _ => VFIO_IRQ_SET_DATA_EVENTFD,
        };
        let count = u32::try_from(eventfds.len()).map_err(|_| ErrorKind::InvalidInput)?;
        let size = size_of::<vfio_irq_set>() + eventfds.len() * size_of::<u32>();
        let size = u32::try_from(size).map_err(|_| ErrorKind::InvalidInput)?;
        // `vfio_irq_set`: argsz, flags, index, start, count; then a descriptor for each.
        let mut argument = vec![size, data | action, interrupt.number(), 0, count];
        let descriptors = eventfds.iter().map(|eventfd| eventfd.as_raw_fd());
        argument.extend(descriptors.map(|fd| u32::from_ne_bytes(fd.to_ne_bytes())));
        // SAFETY: the argument is as long as it says.
        let result =
            unsafe { ioctl_with_ptr(&self.file, VFIO_DEVICE_SET_IRQS(), argument.as_ptr()) };
        match result {
            0 => Ok(()),
            ..0 => Err(io::Error::last_os_error()),
            vectors => Err(io::Error::other(format!(
                "the host has {vectors} vectors, not {count}"
            ))),
        }
    }
}

impl VfioDevice for Device {
    fn region(&self, index: RegionIndex) -> Region {
        let number = index.number();
        let size = self.device.get_region_size(number);
        let mut mappable = Vec::new();
        if size != 0 && self.device.get_region_flags(number) & MAPPABLE != 0 {
            let sparse = self
                .device
                .get_region_caps(number)
                .into_iter()
                .find_map(|capability| match capability {
                    VfioRegionInfoCap::SparseMmap(sparse) => Some(sparse.areas),
                    _ => None,
                });
            match sparse {
                Some(areas) => mappable.extend(areas.iter().filter_map(|area| {
                    let end = area.offset.checked_add(area.size)?;
                    (end <= size).then_some(area.offset..end)
                })),
                None => mappable.push(0..size),
            }
        }
        Region { size, mappable }
    }

    fn read(&self, index: RegionIndex, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let position = self.position(index, offset, data.len())?;
        self.file.read_exact_at(data, position)
    }

    fn write(&self, index: RegionIndex, offset: u64, data: &[u8]) -> io::Result<()> {
        let position = self.position(index, offset, data.len())?;
        self.file.write_all_at(data, position)
    }

    fn map(&self, index: RegionIndex, part: Range<u64>) -> io::Result<MmapRegion> {
        let size = part.end.checked_sub(part.start).map(usize::try_from);
        let Some(Ok(size)) = size else {
            return Err(ErrorKind::InvalidInput.into());
        };
        let start = self.position(index, part.start, size)?;
        let place = FileOffset::new(self.file.try_clone()?, start);
        MmapRegion::from_file(place, size).map_err(io::Error::other)
    }

    fn vectors(&self, interrupt: Interrupt) -> u32 {
        let info = self.device.get_irq_info(interrupt.number());
        info.map_or(0, |info| info.count)
    }

    fn connect(&self, interrupt: Interrupt, eventfds: &[&EventFd]) -> io::Result<()> {
        self.set_irqs(interrupt, VFIO_IRQ_SET_ACTION_TRIGGER, eventfds)
    }

    fn resample(&self, eventfd: &EventFd) -> io::Result<()> {
        self.set_irqs(Interrupt::Intx, VFIO_IRQ_SET_ACTION_UNMASK, &[eventfd])
    }

    fn reset(&self) -> io::Result<()> {
        // SAFETY: the ioctl has no argument.
        match unsafe { ioctl(&self.file, VFIO_DEVICE_RESET()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn migration(&self) -> Option<&dyn Migration> {
        let flags = self.device.query_migration_support().ok().flatten()?;
        (flags & u64::from(VFIO_MIGRATION_STOP_COPY) != 0).then_some(self)
    }
}

impl Migration for Device {
    fn set_state(&self, state: DeviceState) -> io::Result<()> {
        let set = self.device.set_migration_state(state.number());
        set.map_err(io::Error::other)
    }

    fn read_state(&self, data: &mut [u8]) -> io::Result<usize> {
        self.device
            .read_migration_data(data)
            .map_err(io::Error::other)
    }

    fn write_state(&self, data: &[u8]) -> io::Result<()> {
        self.device
            .write_migration_data(data)
            .map_err(io::Error::other)
    }
}
