//! The ioctls (Linux, linux/vfio.h), each as a function that is safe to call.
#![expect(unsafe_code, reason = "ioctls")]

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd};

use pio_mmio_bus::pci::RequesterId;
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_DEVICE_FLAGS_PCI, VFIO_GROUP_FLAGS_VIABLE,
    VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP,
    VFIO_TYPE1v2_IOMMU, vfio_device_info, vfio_group_status, vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap, vfio_irq_info, vfio_region_info,
};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{
    ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val,
};

use super::super::memory::HostMemory;
use crate::sysfs::PciAddress;

/// Their numbers.
mod number {
    use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};
    use vmm_sys_util::ioctl_io_nr;

    ioctl_io_nr!(API_VERSION, VFIO_TYPE as u32, VFIO_BASE);
    ioctl_io_nr!(CHECK_EXTENSION, VFIO_TYPE as u32, VFIO_BASE + 1);
    ioctl_io_nr!(SET_IOMMU, VFIO_TYPE as u32, VFIO_BASE + 2);
    ioctl_io_nr!(GROUP_STATUS, VFIO_TYPE as u32, VFIO_BASE + 3);
    ioctl_io_nr!(SET_CONTAINER, VFIO_TYPE as u32, VFIO_BASE + 4);
    ioctl_io_nr!(DEVICE_FD, VFIO_TYPE as u32, VFIO_BASE + 6);
    ioctl_io_nr!(DEVICE_INFO, VFIO_TYPE as u32, VFIO_BASE + 7);
    ioctl_io_nr!(REGION_INFO, VFIO_TYPE as u32, VFIO_BASE + 8);
    ioctl_io_nr!(IRQ_INFO, VFIO_TYPE as u32, VFIO_BASE + 9);
    ioctl_io_nr!(SET_IRQS, VFIO_TYPE as u32, VFIO_BASE + 10);
    ioctl_io_nr!(RESET, VFIO_TYPE as u32, VFIO_BASE + 11);
    ioctl_io_nr!(HOT_RESET_INFO, VFIO_TYPE as u32, VFIO_BASE + 12);
    ioctl_io_nr!(HOT_RESET, VFIO_TYPE as u32, VFIO_BASE + 13);
    ioctl_io_nr!(FEATURE, VFIO_TYPE as u32, VFIO_BASE + 17);
    // Of containers, where the same numbers mean something else.
    ioctl_io_nr!(MAP_DMA, VFIO_TYPE as u32, VFIO_BASE + 13);
    ioctl_io_nr!(UNMAP_DMA, VFIO_TYPE as u32, VFIO_BASE + 14);
}

/// Functions that one reset of a slot or bus can be of.
const MAX_RESET: u32 = 4096;

fn checked(result: i32) -> io::Result<i32> {
    match result {
        ..0 => Err(io::Error::last_os_error()),
        _ => Ok(result),
    }
}

/// A length as a structure has it.
fn size(bytes: usize) -> io::Result<u32> {
    u32::try_from(bytes).map_err(|_| ErrorKind::InvalidInput.into())
}

/// The size of a structure with which an argument begins.
fn size_of_header<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(0)
}

/// Whether a container knows this API and type 1, version 2.
pub(super) fn is_type1(container: &File) -> bool {
    // SAFETY: neither call takes a pointer.
    let (version, type1) = unsafe {
        (
            ioctl(container, number::API_VERSION()),
            ioctl_with_val(
                container,
                number::CHECK_EXTENSION(),
                VFIO_TYPE1v2_IOMMU.into(),
            ),
        )
    };
    u32::try_from(version) == Ok(VFIO_API_VERSION) && type1 == 1
}

/// Makes a container, which has a group, one of type 1.
pub(super) fn set_iommu(container: &File) -> io::Result<()> {
    // SAFETY: the call takes no pointer.
    checked(unsafe { ioctl_with_val(container, number::SET_IOMMU(), VFIO_TYPE1v2_IOMMU.into()) })?;
    Ok(())
}

/// Whether nobody of the host uses a function of a group.
pub(super) fn is_viable(group: &File) -> io::Result<bool> {
    let mut status = vfio_group_status {
        argsz: size_of_header::<vfio_group_status>(),
        flags: 0,
    };
    // SAFETY: the argument is as long as it says.
    checked(unsafe { ioctl_with_mut_ref(group, number::GROUP_STATUS(), &mut status) })?;
    Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
}

/// Puts a group into a container.
pub(super) fn set_container(group: &File, container: &File) -> io::Result<()> {
    // SAFETY: the call reads one descriptor.
    checked(unsafe { ioctl_with_ref(group, number::SET_CONTAINER(), &container.as_raw_fd()) })?;
    Ok(())
}

/// Opens a function of a group that is in a container.
pub(super) fn open_function(group: &File, name: &CStr) -> io::Result<File> {
    // SAFETY: the call reads the name up to its end.
    let descriptor = unsafe { ioctl_with_ptr(group, number::DEVICE_FD(), name.as_ptr()) };
    let descriptor = checked(descriptor)?;
    // SAFETY: the descriptor is new, and nobody else's.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

/// Whether an opened function is one of PCI.
pub(super) fn is_pci(function: &File) -> io::Result<bool> {
    let mut info = vfio_device_info {
        argsz: size_of_header::<vfio_device_info>(),
        ..Default::default()
    };
    // SAFETY: the argument is as long as it says.
    checked(unsafe { ioctl_with_mut_ref(function, number::DEVICE_INFO(), &mut info) })?;
    Ok(info.flags & VFIO_DEVICE_FLAGS_PCI != 0)
}

/// Where a region is in the function's file.
#[derive(Clone, Debug, Default)]
pub(super) struct RegionInfo {
    pub(super) size: u64,
    pub(super) offset: u64,
    /// What may be mapped.
    pub(super) mappable: Vec<Range<u64>>,
}

/// What there is of a region.
pub(super) fn region(function: &File, index: u32) -> io::Result<RegionInfo> {
    let header = size_of::<vfio_region_info>();
    let mut info = vfio_region_info {
        argsz: size(header)?,
        index,
        ..Default::default()
    };
    // SAFETY: the argument is as long as it says.
    checked(unsafe { ioctl_with_mut_ref(function, number::REGION_INFO(), &mut info) })?;
    let mut sparse = None;
    if info.flags & VFIO_REGION_INFO_FLAG_CAPS != 0 && info.argsz > size(header)? {
        // Once more, with as much room as it takes.
        let words = usize::try_from(info.argsz).unwrap_or(0).div_ceil(4);
        let mut argument = vec![info.argsz, 0, index];
        argument.resize(words.max(header / 4), 0);
        // SAFETY: the argument is as long as it says.
        checked(unsafe {
            ioctl_with_mut_ptr(function, number::REGION_INFO(), argument.as_mut_ptr())
        })?;
        sparse = sparse_areas(&argument);
    }
    let mut mappable = Vec::new();
    if info.flags & VFIO_REGION_INFO_FLAG_MMAP != 0 {
        match sparse {
            Some(areas) => mappable = areas,
            None => mappable.push(0..info.size),
        }
    }
    mappable.retain(|part| part.start < part.end && part.end <= info.size);
    Ok(RegionInfo {
        size: info.size,
        offset: info.offset,
        mappable,
    })
}

/// The areas of the capability that lists what may be mapped of a region (`vfio_region_info_cap_sparse_mmap`), if it is among those
/// that follow `argument`, a `vfio_region_info`.
fn sparse_areas(argument: &[u32]) -> Option<Vec<Range<u64>>> {
    let word = |at: usize| argument.get(at).copied();
    let [mut at, mut before] = [usize::try_from(word(3)?).ok()? / 4, 0];
    while at > before {
        let (header, next) = (word(at)?, word(at + 1)?);
        if header & 0xffff == VFIO_REGION_INFO_CAP_SPARSE_MMAP {
            let count = usize::try_from(word(at + 2)?).ok()?;
            let areas = argument.get(at + 4..)?.as_chunks().0.iter().take(count);
            let long = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
            let areas = areas.filter_map(|&[a, b, c, d]| {
                let start = long(a, b);
                Some(start..start.checked_add(long(c, d))?)
            });
            return Some(areas.collect());
        }
        (before, at) = (at, usize::try_from(next).ok()? / 4);
    }
    None
}

/// Flags and number of a function's interrupts of a kind.
pub(super) fn interrupts(function: &File, index: u32) -> io::Result<(u32, u32)> {
    let mut info = vfio_irq_info {
        argsz: size_of_header::<vfio_irq_info>(),
        flags: 0,
        index,
        count: 0,
    };
    // SAFETY: the argument is as long as it says.
    checked(unsafe { ioctl_with_mut_ref(function, number::IRQ_INFO(), &mut info) })?;
    Ok((info.flags, info.count))
}

/// Has eventfds do what `flags` say for the interrupts of a kind from `first` on; without any, the kind is switched off.
pub(super) fn set_irqs(
    function: &File,
    index: u32,
    flags: u32,
    first: u32,
    eventfds: &[Option<&EventFd>],
) -> io::Result<()> {
    // `vfio_irq_set`: argsz, flags, index, start, count; then a descriptor for each, or -1.
    let count = size(eventfds.len())?;
    let mut argument = vec![0, flags, index, first, count];
    let descriptors = eventfds.iter().map(|eventfd| match eventfd {
        Some(eventfd) => eventfd.as_raw_fd(),
        None => -1,
    });
    argument.extend(descriptors.map(|fd| u32::from_ne_bytes(fd.to_ne_bytes())));
    let bytes = size(size_of_val(&argument[..]))?;
    if let Some(argsz) = argument.first_mut() {
        *argsz = bytes;
    }
    // SAFETY: the argument is as long as it says.
    let result = unsafe { ioctl_with_ptr(function, number::SET_IRQS(), argument.as_ptr()) };
    match checked(result)? {
        0 => Ok(()),
        vectors => Err(io::Error::other(format!(
            "the host has {vectors} vectors, not {}",
            u64::from(first) + u64::from(count)
        ))),
    }
}

/// Resets a function alone.
pub(super) fn reset(function: &File) -> io::Result<()> {
    // SAFETY: the call has no argument.
    checked(unsafe { ioctl(function, number::RESET()) })?;
    Ok(())
}

/// The functions that a reset of the slot or bus resets, with the numbers of their groups.
pub(super) fn slot(function: &File) -> io::Result<Vec<(PciAddress, u32)>> {
    // `vfio_pci_hot_reset_info`: argsz, flags, count; then for each its group, and its segment, bus, device and function. The first call only says how many.
    let mut argument: Vec<u32> = vec![12, 0, 0];
    let call = |argument: &mut Vec<u32>| {
        // SAFETY: the argument is as long as it says.
        checked(unsafe {
            ioctl_with_mut_ptr(function, number::HOT_RESET_INFO(), argument.as_mut_ptr())
        })
    };
    if let Err(error) = call(&mut argument)
        && error.kind() != ErrorKind::StorageFull
    {
        return Err(error);
    }
    let count = argument.get(2).copied().unwrap_or(0).min(MAX_RESET);
    let words = 3 + 2 * usize::try_from(count).unwrap_or(0);
    argument = vec![0; words];
    if let Some(argsz) = argument.first_mut() {
        *argsz = size(words * 4)?;
    }
    call(&mut argument)?;
    let functions = argument.get(3..).unwrap_or_default().as_chunks().0.iter();
    Ok(functions
        .map(|&[group, address]| {
            let [a, b, bus, devfn] = address.to_ne_bytes();
            let domain = u16::from_ne_bytes([a, b]).into();
            let id = RequesterId::new(bus, devfn);
            (PciAddress { domain, id }, group)
        })
        .collect())
}

/// Resets the slot or bus of a function; `groups` are those of all functions there.
pub(super) fn reset_slot(function: &File, groups: &[&File]) -> io::Result<()> {
    // `vfio_pci_hot_reset`: argsz, flags, count; then the groups' descriptors.
    let mut argument = vec![size(12 + groups.len() * 4)?, 0, size(groups.len())?];
    let descriptors = groups.iter().map(|group| group.as_raw_fd());
    argument.extend(descriptors.map(|fd| u32::from_ne_bytes(fd.to_ne_bytes())));
    // SAFETY: the argument is as long as it says.
    checked(unsafe { ioctl_with_ptr(function, number::HOT_RESET(), argument.as_ptr()) })?;
    Ok(())
}

/// Asks or tells something of a feature, which `flags` name; `data` goes both ways.
pub(super) fn feature<const N: usize>(
    function: &File,
    flags: u32,
    data: [u32; N],
) -> io::Result<[u32; N]> {
    // `vfio_device_feature`: argsz, flags; then the data.
    let mut argument = vec![size(8 + size_of_val(&data))?, flags];
    argument.extend(data);
    // SAFETY: the argument is as long as it says.
    checked(unsafe { ioctl_with_mut_ptr(function, number::FEATURE(), argument.as_mut_ptr()) })?;
    let answer = argument.get(2..).and_then(|rest| rest.first_chunk());
    Ok(answer.copied().unwrap_or(data))
}

/// Brings a function into a state of migration. If its data go through a file from then on, that is what is returned.
pub(super) fn set_migration_state(
    function: &File,
    flags: u32,
    state: u32,
) -> io::Result<Option<File>> {
    let [_, descriptor] = feature(function, flags, [state, u32::MAX])?;
    let descriptor = i32::from_ne_bytes(descriptor.to_ne_bytes());
    // SAFETY: a descriptor that the kernel returns here is new, and nobody else's.
    Ok((descriptor >= 0).then(|| unsafe { File::from_raw_fd(descriptor) }))
}

/// Maps memory for the functions of a container.
pub(super) fn map(container: &File, iova: u64, memory: &HostMemory, flags: u32) -> io::Result<()> {
    let argument = vfio_iommu_type1_dma_map {
        argsz: size_of_header::<vfio_iommu_type1_dma_map>(),
        flags,
        vaddr: memory.address(),
        iova,
        size: memory.size(),
    };
    // SAFETY: the argument is as long as it says. The memory belongs to a guest, so that nothing in this process relies on its
    // contents.
    checked(unsafe { ioctl_with_ref(container, number::MAP_DMA(), &argument) })?;
    Ok(())
}

/// Takes memory back; returns how many bytes were mapped.
pub(super) fn unmap(container: &File, iova: u64, size: u64) -> io::Result<u64> {
    let mut argument = vfio_iommu_type1_dma_unmap {
        argsz: size_of_header::<vfio_iommu_type1_dma_unmap>(),
        iova,
        size,
        ..Default::default()
    };
    // SAFETY: the argument is as long as it says.
    checked(unsafe { ioctl_with_mut_ref(container, number::UNMAP_DMA(), &mut argument) })?;
    Ok(argument.size)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `vfio_region_info` whose first capability is one of two of which the second lists areas.
    fn listed(next: u32) -> Vec<u32> {
        let mut argument = vec![0; 8];
        argument[3] = 32;
        argument.extend([3, 40, 1, next, 3, 0]);
        argument.extend([
            0x1000,
            0,
            0x2000,
            0,
            0,
            1,
            0x1000,
            0,
            u32::MAX,
            u32::MAX,
            1,
            0,
        ]);
        argument
    }

    #[test]
    fn areas_that_may_be_mapped_are_found_behind_other_capabilities() {
        let areas = sparse_areas(&listed(0)).unwrap();
        assert_eq!(areas, [0x1000..0x3000, 1 << 32..(1 << 32) + 0x1000]);
    }

    #[test]
    fn a_list_of_capabilities_that_loops_or_ends_early_ends() {
        let mut argument = listed(0);
        argument[8] = 9;
        argument[10] = 9;
        for next in [0, 32, 40, 44, 4000, u32::MAX] {
            argument[11] = next;
            assert_eq!(sparse_areas(&argument), None);
        }
        for length in 0..10 {
            assert_eq!(sparse_areas(&listed(0)[..length]), None);
        }
    }
}
