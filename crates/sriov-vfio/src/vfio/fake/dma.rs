use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::Mutex;

use super::lock;
use crate::vfio::memory::HostMemory;
use crate::vfio::space::{Access, DmaSpace};

/// An I/O address space by the rules of type 1: no overlaps, whole mappings are unmapped, a limit on their number.
#[derive(Default)]
pub struct FakeDmaSpace {
    mappings: Mutex<BTreeMap<u64, (HostMemory, Access)>>,
    operations: Mutex<(usize, usize)>,
    limit: Option<usize>,
}

impl FakeDmaSpace {
    /// A space that holds no more than `limit` mappings.
    pub fn with_limit(limit: usize) -> Self {
        Self {
            limit: Some(limit),
            ..Self::default()
        }
    }

    /// The mappings: I/O address, size in bytes, access.
    pub fn mappings(&self) -> Vec<(u64, u64, Access)> {
        let mappings = lock(&self.mappings);
        let all = mappings.iter();
        all.map(|(&iova, (memory, access))| (iova, memory.size(), *access))
            .collect()
    }

    /// How many maps and unmaps there were: with a kernel each is an ioctl.
    pub fn operations(&self) -> (usize, usize) {
        *lock(&self.operations)
    }
}

impl DmaSpace for FakeDmaSpace {
    fn map(&self, iova: u64, memory: &HostMemory, access: Access) -> io::Result<()> {
        lock(&self.operations).0 += 1;
        let mut mappings = lock(&self.mappings);
        let aligned = (iova | memory.size()).is_multiple_of(4096) && memory.size() != 0;
        let last = iova.checked_add(memory.size().wrapping_sub(1));
        let (true, Some(last)) = (aligned, last) else {
            return Err(ErrorKind::InvalidInput.into());
        };
        let before = mappings.range(..=last).next_back();
        if before.is_some_and(|(first, (other, _))| first + (other.size() - 1) >= iova) {
            return Err(ErrorKind::AlreadyExists.into());
        }
        if self.limit.is_some_and(|limit| mappings.len() >= limit) {
            return Err(ErrorKind::StorageFull.into());
        }
        mappings.insert(iova, (memory.clone(), access));
        Ok(())
    }

    fn unmap(&self, iova: u64, size: u64) -> io::Result<()> {
        lock(&self.operations).1 += 1;
        let mut mappings = lock(&self.mappings);
        let last = size.checked_sub(1).and_then(|rest| iova.checked_add(rest));
        let last = last.ok_or(ErrorKind::InvalidInput)?;
        let split = |address: u64| {
            let before = mappings.range(..address).next_back();
            before.is_some_and(|(first, (memory, _))| first + (memory.size() - 1) >= address)
        };
        if split(iova) || last.checked_add(1).is_some_and(split) {
            return Err(ErrorKind::InvalidInput.into());
        }
        mappings.retain(|first, _| !(iova..=last).contains(first));
        Ok(())
    }
}
