//! The arguments of hypercalls, which are in the guest's memory by its virtual addresses.

use grant_table::hypervisor::{Arguments, Fault};
use grant_table::spec::Errno;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::kvm::Vcpu;
use crate::machine::Memory;
use crate::machine::stop::StopSwitch;

const PAGE: u64 = 4096;

/// The memory of the guest as the code on a vCPU sees it.
pub(super) struct Virtual<'a> {
    pub(super) vcpu: &'a Vcpu,
    pub(super) memory: &'a Memory,
    pub(super) stop: &'a StopSwitch,
}

impl Virtual<'_> {
    /// The guest-physical address behind a virtual one.
    pub(super) fn physical(&self, address: u64) -> Result<u64, Errno> {
        let translation = self.vcpu.translate_gva(address).map_err(|_| Errno::Fault)?;
        (translation.valid != 0)
            .then_some(translation.physical_address)
            .ok_or(Errno::Fault)
    }

    /// Reads an argument.
    pub(super) fn get<T: FromBytes + IntoBytes>(&self, address: u64) -> Result<T, Errno> {
        let mut value = T::new_zeroed();
        self.read(address, value.as_mut_bytes())
            .map_err(|_| Errno::Fault)?;
        Ok(value)
    }

    /// Writes an argument back.
    pub(super) fn put<T: IntoBytes + Immutable>(
        &self,
        address: u64,
        value: &T,
    ) -> Result<(), Errno> {
        self.write(address, value.as_bytes())
            .map_err(|_| Errno::Fault)
    }

    /// Calls `part` with where each part of a range is and which of its `length` bytes that are, a page at most.
    fn parts(
        &self,
        address: u64,
        length: usize,
        mut part: impl FnMut(GuestAddress, std::ops::Range<usize>) -> bool,
    ) -> Result<(), Fault> {
        let mut done = 0;
        while done < length {
            let at = u64::try_from(done)
                .ok()
                .and_then(|done| address.checked_add(done));
            let at = at.ok_or(Fault(address))?;
            let room = usize::try_from(PAGE - at % PAGE).map_err(|_| Fault(at))?;
            let end = length.min(done.saturating_add(room));
            let physical = self.physical(at).map_err(|_| Fault(at))?;
            if !part(GuestAddress(physical), done..end) {
                return Err(Fault(at));
            }
            done = end;
        }
        Ok(())
    }
}

impl Arguments for Virtual<'_> {
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        self.parts(address, bytes.len(), |at, range| {
            bytes
                .get_mut(range)
                .is_some_and(|bytes| self.memory.read_slice(bytes, at).is_ok())
        })
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.parts(address, bytes.len(), |at, range| {
            bytes
                .get(range)
                .is_some_and(|bytes| self.memory.write_slice(bytes, at).is_ok())
        })
    }

    fn preempted(&self) -> bool {
        self.stop.reason().is_some()
    }
}
