//! The guest's RAM as the memory of a domain.

use grant_table::frame::Frame;
use grant_table::guest::Access;
use grant_table::hypervisor;
use grant_table::spec::grant::Refusal;

use crate::kvm::ram_frame;
use crate::machine::Memory;

/// Frames that a guest can grant: its RAM. It cannot map those of others, nor give its own away.
#[derive(Debug)]
pub(super) struct Ram(pub(super) Memory);

impl hypervisor::Memory for Ram {
    fn frame(&self, number: u64) -> Option<(Frame, Access)> {
        ram_frame(&self.0, number).map(|frame| (frame, Access::ReadWrite))
    }

    fn map(&self, _address: u64, _frame: Frame, _access: Access) -> Result<(), Refusal> {
        Err(Refusal::General)
    }

    fn unmap(&self, _address: u64, _frame: u64, _replacement: u64) -> Result<(), Refusal> {
        Err(Refusal::General)
    }

    fn take(&self, _number: u64) -> Result<Frame, Refusal> {
        Err(Refusal::BadPage)
    }

    fn give(&self, _frame: Frame, _place: &mut dyn FnMut() -> Option<u64>) -> bool {
        false
    }
}
