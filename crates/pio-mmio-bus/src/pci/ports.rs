use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};

use super::RequesterId;
use super::root_complex::RootComplex;
use super::spec::ports::{DATA, ENABLE, SIZE, WRITABLE};
use crate::bus::{AccessError, BusDevice};

/// Configuration mechanism #1: the address register at port 0xCF8 and the data register at 0xCFC (PCI §3.2.2.3.2).
///
/// Reaches the first 256 bytes of each function. The address register exists for aligned accesses of 4 bytes only: others at
/// 0xCF8 to 0xCFB belong to whoever else answers there, such as a reset register at 0xCF9.
/// As [`Ecam`](super::Ecam), it does not keep the root complex alive.
pub struct ConfigPorts {
    root: Weak<RootComplex>,
    address: AtomicU32,
}

impl ConfigPorts {
    /// First port.
    pub const BASE: u64 = super::spec::ports::BASE;
    /// Number of ports.
    pub const SIZE: u64 = SIZE;

    /// Access to the configuration space of all functions of `root`.
    pub fn new(root: &Arc<RootComplex>) -> Self {
        Self {
            root: Arc::downgrade(root),
            address: AtomicU32::new(0),
        }
    }

    /// Saves the address register, all the state there is.
    pub fn save(&self) -> u32 {
        self.address.load(Ordering::Relaxed)
    }

    /// Takes over a saved address register. Reserved bits are dropped, as when the guest writes them.
    pub fn restore(&self, address: u32) {
        self.address.store(address & WRITABLE, Ordering::Relaxed);
    }

    /// What an access of `width` bytes at `offset` of the data register reaches, if translation is enabled.
    fn target(&self, offset: u64, width: usize) -> Result<Option<(RequesterId, u16)>, AccessError> {
        let error = AccessError::Width { offset, width };
        let at = offset
            .checked_sub(DATA)
            .and_then(|at| u16::try_from(at).ok());
        let Some(at) = at.filter(|&at| usize::from(at) + width <= 4) else {
            return Err(error);
        };
        let address = self.address.load(Ordering::Relaxed);
        let [register, low, high, _] = address.to_le_bytes();
        Ok((address & ENABLE != 0).then_some((
            RequesterId(u16::from_le_bytes([low, high])),
            u16::from(register) + at,
        )))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) -> Result<(), AccessError> {
        if offset < DATA {
            if offset != 0 || data.len() != 4 {
                return Err(AccessError::NoRegister { offset });
            }
            data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes());
            return Ok(());
        }
        match (self.target(offset, data.len())?, self.root.upgrade()) {
            (Some((id, register)), Some(root)) => root.read_config(id, register, data),
            _ => data.fill(0xff),
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), AccessError> {
        if offset < DATA {
            let (0, Ok(bytes)) = (offset, data.try_into()) else {
                return Err(AccessError::NoRegister { offset });
            };
            self.restore(u32::from_le_bytes(bytes));
            return Ok(());
        }
        let target = self.target(offset, data.len())?;
        if let (Some((id, register)), Some(root)) = (target, self.root.upgrade()) {
            root.write_config(id, register, data);
        }
        Ok(())
    }
}
