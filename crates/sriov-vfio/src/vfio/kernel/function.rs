use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FEATURE_PCI_VF_TOKEN, VFIO_DEVICE_FEATURE_SET, VFIO_IRQ_INFO_NORESIZE,
    VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_EVENTFD,
    VFIO_IRQ_SET_DATA_NONE,
};
use vm_memory::{FileOffset, MmapRegion};
use vmm_sys_util::eventfd::EventFd;

use super::container::Container;
use super::groups::Group;
use super::ioctls::{self, RegionInfo};
use crate::sysfs::PciAddress;
use crate::vfio::device::{Interrupt, Region, RegionIndex, SlotFunction, VfioDevice};
use crate::vfio::migration::Migration;
use crate::vfio::open::OpenError;
use crate::vfio::token::VfToken;

/// A function that was opened.
pub(super) struct OpenFunction {
    /// Closed before the group is left, and that before the container is.
    pub(super) file: File,
    address: PciAddress,
    group: Arc<Group>,
    container: Arc<Container>,
    /// BARs 0 to 5, and configuration space.
    bars: [RegionInfo; 6],
    config: RegionInfo,
    /// Through which the state of a migration goes, while it does.
    pub(super) stream: Mutex<Option<File>>,
}

impl OpenFunction {
    pub(super) fn new(
        file: File,
        address: PciAddress,
        group: Arc<Group>,
        container: Arc<Container>,
    ) -> Result<Self, OpenError> {
        let asked = |error| OpenError::io("ask for a function's regions", error);
        if !ioctls::is_pci(&file).map_err(asked)? {
            return Err(asked(ErrorKind::InvalidData.into()));
        }
        let region = |index: RegionIndex| ioctls::region(&file, index.number());
        let mut bars: [RegionInfo; 6] = Default::default();
        for (bar, number) in bars.iter_mut().zip(0..) {
            *bar = region(RegionIndex::Bar(number)).map_err(asked)?;
        }
        let config = region(RegionIndex::Config).map_err(asked)?;
        group.functions().insert(address);
        Ok(Self {
            file,
            address,
            group,
            container,
            bars,
            config,
            stream: Mutex::default(),
        })
    }

    fn info(&self, index: RegionIndex) -> Option<&RegionInfo> {
        match index {
            RegionIndex::Config => Some(&self.config),
            RegionIndex::Bar(bar) => self.bars.get(usize::from(bar)),
        }
    }

    /// Where in the file an access is, if it is inside the region.
    fn position(&self, index: RegionIndex, offset: u64, length: usize) -> io::Result<u64> {
        let inside = || {
            let info = self.info(index)?;
            let end = offset.checked_add(u64::try_from(length).ok()?)?;
            let start = info.offset.checked_add(offset)?;
            (end <= info.size).then_some(start)
        };
        inside().ok_or(ErrorKind::InvalidInput.into())
    }
}

impl Drop for OpenFunction {
    fn drop(&mut self) {
        self.group.functions().remove(&self.address);
    }
}

impl VfioDevice for OpenFunction {
    fn region(&self, index: RegionIndex) -> Region {
        let info = self.info(index);
        info.map_or_else(Region::default, |info| Region {
            size: info.size,
            mappable: info.mappable.clone(),
        })
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
        ioctls::interrupts(&self.file, interrupt.number()).map_or(0, |(_, count)| count)
    }

    fn grows(&self, interrupt: Interrupt) -> bool {
        ioctls::interrupts(&self.file, interrupt.number())
            .is_ok_and(|(flags, _)| flags & VFIO_IRQ_INFO_NORESIZE == 0)
    }

    fn connect(
        &self,
        interrupt: Interrupt,
        first: u32,
        eventfds: &[Option<&EventFd>],
    ) -> io::Result<()> {
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        ioctls::set_irqs(&self.file, interrupt.number(), flags, first, eventfds)
    }

    fn disconnect(&self, interrupt: Interrupt) -> io::Result<()> {
        let flags = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER;
        ioctls::set_irqs(&self.file, interrupt.number(), flags, 0, &[])
    }

    fn resample(&self, eventfd: &EventFd) -> io::Result<()> {
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_UNMASK;
        let pin = Interrupt::Intx.number();
        ioctls::set_irqs(&self.file, pin, flags, 0, &[Some(eventfd)])
    }

    fn reset(&self) -> io::Result<()> {
        ioctls::reset(&self.file)
    }

    fn slot(&self) -> io::Result<Vec<SlotFunction>> {
        let functions = ioctls::slot(&self.file)?;
        Ok(self.container.groups().holders(functions))
    }

    fn reset_slot(&self) -> io::Result<()> {
        let functions = ioctls::slot(&self.file)?;
        let numbers: BTreeSet<u32> = functions.into_iter().map(|(_, group)| group).collect();
        // The kernel refuses if one is missing.
        let groups = self.container.groups().of(numbers);
        let files: Vec<_> = groups.iter().map(|group| &group.file).collect();
        ioctls::reset_slot(&self.file, &files)
    }

    fn set_vf_token(&self, token: VfToken) -> io::Result<()> {
        let flags = VFIO_DEVICE_FEATURE_SET | VFIO_DEVICE_FEATURE_PCI_VF_TOKEN;
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(token.as_bytes().as_chunks().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        ioctls::feature(&self.file, flags, words)?;
        Ok(())
    }

    fn migration(&self) -> Option<&dyn Migration> {
        self.is_migratable().then_some(self)
    }
}
