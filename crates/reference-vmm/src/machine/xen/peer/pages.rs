//! Pages of another guest's that this one sees.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::sync::Arc;

use grant_table::guest::Access;
use grant_table::spec::PAGE_SIZE;
use rustix::fs::{SealFlags, fcntl_get_seals};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::kvm::{Vm, Window};

/// Pages that can be shown at a time.
const MOST: usize = 1024;

/// A region of the other guest's memory, and windows through which none of its pages is shown now.
#[derive(Debug)]
struct Region {
    start: u64,
    size: u64,
    memory: Arc<GuestMemoryMmap>,
    unused: Vec<Window>,
}

/// A page that is shown.
#[derive(Debug)]
struct Shown {
    region: usize,
    window: Window,
    at: u64,
    /// What the other VMM calls its use.
    theirs: u64,
}

/// The memory of the other guest, and what of it this one sees.
#[derive(Debug)]
pub(super) struct Pages {
    vm: Vm,
    regions: Vec<Region>,
    shown: HashMap<u32, Shown>,
    next: u32,
}

impl Pages {
    pub fn new(vm: Vm) -> Self {
        Self {
            vm,
            regions: Vec::new(),
            shown: HashMap::new(),
            next: 0,
        }
    }

    /// Adds a region: its address in the other guest, its size, and where it is in a file that never gets shorter.
    pub fn add(&mut self, [start, size, offset]: [u64; 3], file: File) -> io::Result<()> {
        let sealed = fcntl_get_seals(&file)?.contains(SealFlags::SHRINK);
        if !sealed || start.checked_add(size).is_none() {
            return Err(ErrorKind::InvalidData.into());
        }
        let length = usize::try_from(size).map_err(io::Error::other)?;
        let place = Some(FileOffset::new(file, offset));
        let ranges = vec![(GuestAddress(0), length, place)];
        let memory = GuestMemoryMmap::from_ranges_with_files(ranges).map_err(io::Error::other)?;
        self.regions.push(Region {
            start,
            size,
            memory: Arc::new(memory),
            unused: Vec::new(),
        });
        Ok(())
    }

    /// Whether another page can be shown.
    pub fn is_full(&self) -> bool {
        self.shown.len() >= MOST
    }

    /// Shows page `number` at an address; the handle of that. None if there is no such page, or KVM refuses the address.
    pub fn show(&mut self, number: u64, at: u64, access: Access, theirs: u64) -> Option<u32> {
        let address = number.checked_mul(PAGE_SIZE as u64)?;
        let inside =
            |region: &Region| (region.start..region.start + region.size).contains(&address);
        let index = self.regions.iter().position(inside)?;
        let region = self.regions.get_mut(index)?;
        let window = match region.unused.pop() {
            Some(window) => window,
            None => self.vm.window(region.memory.clone()).ok()?,
        };
        let offset = usize::try_from(address - region.start).ok()?;
        if window.show_page(offset, at, access).is_err() {
            region.unused.push(window);
            return None;
        }
        // Handles come around only after those of all that are shown.
        let mut handle = self.next;
        while self.shown.contains_key(&handle) {
            handle = handle.wrapping_add(1);
        }
        self.next = handle.wrapping_add(1);
        let shown = Shown {
            region: index,
            window,
            at,
            theirs,
        };
        self.shown.insert(handle, shown);
        Some(handle)
    }

    /// Hides the page with this handle, which is shown at `at`: what the other VMM calls its use.
    pub fn hide(&mut self, handle: u32, at: u64) -> Option<u64> {
        let shown = self.shown.get(&handle).filter(|shown| shown.at == at)?;
        shown.window.show(None).ok()?;
        let Shown {
            region,
            window,
            theirs,
            ..
        } = self.shown.remove(&handle)?;
        if let Some(region) = self.regions.get_mut(region) {
            region.unused.push(window);
        }
        Some(theirs)
    }

    /// Whether there is a page with this handle.
    pub fn knows(&self, handle: u32) -> bool {
        self.shown.contains_key(&handle)
    }
}
