use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex};

use super::lock;
use crate::sysfs::PciAddress;
use crate::vfio::device::{Holder, SlotFunction};

/// A slot, or a bus behind a bridge: its functions are reset together.
#[derive(Debug, Default)]
pub struct FakeSlot {
    functions: Mutex<BTreeMap<PciAddress, Holder>>,
    resets: Mutex<usize>,
}

impl FakeSlot {
    /// A slot with these functions.
    pub fn new(functions: impl IntoIterator<Item = (PciAddress, Holder)>) -> Arc<Self> {
        Arc::new(Self {
            functions: Mutex::new(functions.into_iter().collect()),
            resets: Mutex::default(),
        })
    }

    /// Gives a function to somebody else.
    pub fn set_holder(&self, function: PciAddress, holder: Holder) {
        lock(&self.functions).insert(function, holder);
    }

    /// How often it was reset.
    pub fn resets(&self) -> usize {
        *lock(&self.resets)
    }

    pub(super) fn functions(&self) -> Vec<SlotFunction> {
        let functions = lock(&self.functions);
        let all = functions.iter();
        all.map(|(&function, &holder)| SlotFunction { function, holder })
            .collect()
    }

    /// As the kernel: not as long as somebody else has one of the functions.
    pub(super) fn reset(&self) -> io::Result<()> {
        let refused = |mate: &SlotFunction| mate.holder == Holder::Other;
        if self.functions().iter().any(refused) {
            return Err(ErrorKind::PermissionDenied.into());
        }
        *lock(&self.resets) += 1;
        Ok(())
    }
}
