use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex};

use vm_memory::MmapRegion;

use super::lock;
use crate::vfio::window::{GuestWindow, GuestWindows};

/// Memory slots that remember what is shown.
#[derive(Default)]
pub struct FakeWindows(Arc<Mutex<FakeSlots>>);

#[derive(Default)]
struct FakeSlots {
    /// Size in bytes and place of each.
    slots: Vec<(u64, Option<u64>)>,
    refuses: bool,
}

impl FakeWindows {
    /// What is shown: address and size in bytes, in the order in which the windows were made.
    pub fn shown(&self) -> Vec<(u64, u64)> {
        let slots = lock(&self.0);
        let shown = slots.slots.iter();
        shown.filter_map(|&(size, at)| Some((at?, size))).collect()
    }

    /// Refuses to show anything from now on, as a VMM does at a place where there is memory.
    pub fn refuse(&self) {
        lock(&self.0).refuses = true;
    }
}

impl GuestWindows for FakeWindows {
    fn window(&self, memory: MmapRegion) -> io::Result<Box<dyn GuestWindow>> {
        let mut slots = lock(&self.0);
        slots.slots.push((memory.size() as u64, None));
        Ok(Box::new(FakeWindow {
            slots: Arc::clone(&self.0),
            number: slots.slots.len() - 1,
        }))
    }
}

struct FakeWindow {
    slots: Arc<Mutex<FakeSlots>>,
    number: usize,
}

impl GuestWindow for FakeWindow {
    fn show(&self, at: Option<u64>) -> io::Result<()> {
        let mut slots = lock(&self.slots);
        if slots.refuses && at.is_some() {
            return Err(ErrorKind::AlreadyExists.into());
        }
        let slot = slots.slots.get_mut(self.number);
        slot.ok_or(ErrorKind::NotFound)?.1 = at;
        Ok(())
    }
}
