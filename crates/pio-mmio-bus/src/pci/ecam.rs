use std::sync::{Arc, Weak};

use super::RequesterId;
use super::root_complex::RootComplex;
use super::spec::CONFIG_SPACE_SIZE;
use crate::bus::{AccessError, BusDevice};

/// Memory-mapped access to configuration space: 4 KiB for each function, 1 MiB for each bus (PCIe §7.2.2).
///
/// Accesses of any width that stay inside one function are carried out. It does not keep the root complex alive, which through its
/// functions' BARs keeps the bus alive that this is on; without it all reads are all ones.
pub struct Ecam(Weak<RootComplex>);

impl Ecam {
    /// Size of the region for all 256 buses, in bytes. A smaller one, a multiple of 1 MiB, reaches fewer buses.
    pub const SIZE: u64 = 256 << 20;

    /// Access to the configuration space of all functions of `root`. Bus 0 is at offset 0.
    pub fn new(root: &Arc<RootComplex>) -> Self {
        Self(Arc::downgrade(root))
    }

    fn target(offset: u64, width: usize) -> Result<(RequesterId, u16), AccessError> {
        let id = u16::try_from(offset >> 12).map_err(|_| AccessError::NoRegister { offset })?;
        let [low, high, ..] = (offset & 0xfff).to_le_bytes();
        let register = u16::from_le_bytes([low, high]);
        if usize::from(register).saturating_add(width) > CONFIG_SPACE_SIZE {
            return Err(AccessError::Width { offset, width });
        }
        Ok((RequesterId(id), register))
    }
}

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        let (id, register) = Self::target(offset, data.len())?;
        match self.0.upgrade() {
            Some(root) => root.read_config(id, register, data),
            None => data.fill(0xff),
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        let (id, register) = Self::target(offset, data.len())?;
        if let Some(root) = self.0.upgrade() {
            root.write_config(id, register, data);
        }
        Ok(())
    }
}
