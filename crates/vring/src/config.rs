//! What a driver chose for a queue before it started it.

use thiserror::Error;
use vm_memory::GuestAddress;

use crate::spec::{Features, MAX_QUEUE_SIZE, packed, split};

/// Size, addresses and features of a queue, as the driver wrote them to the transport: hostile until [`validate`](Self::validate)d.
///
/// Addresses are in the device's address space: guest-physical, or I/O virtual behind an IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// Number of descriptors, 1 to 32768. It is wider than the field so that nothing is cut off before it is checked.
    pub size: u32,
    /// The descriptor area: descriptor table (split) or descriptor ring (packed).
    pub desc: GuestAddress,
    /// The driver area: available ring (split) or driver event suppression structure (packed).
    pub avail: GuestAddress,
    /// The device area: used ring (split) or device event suppression structure (packed).
    pub used: GuestAddress,
    /// The negotiated features.
    pub features: Features,
}

/// Why a [`QueueConfig`] cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// The size is 0 or above 32768 (§2.7, §2.8).
    #[error("queue size {0} is not in 1..=32768")]
    Size(u32),
    /// The size of a split ring is not a power of two (§2.7).
    #[error("size {0} of a split queue is not a power of two")]
    NotPowerOfTwo(u32),
    /// An area is not aligned as §2.7 or §2.8 says.
    #[error("{area} at {addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// The area's name in the specification.
        area: &'static str,
        /// Its address.
        addr: u64,
        /// What it should be a multiple of.
        align: u64,
    },
    /// An area ends beyond the address space.
    #[error("{area} at {addr:#x} of {len} bytes passes the end of the address space")]
    Overflow {
        /// The area's name in the specification.
        area: &'static str,
        /// Its address.
        addr: u64,
        /// Its length in bytes.
        len: usize,
    },
}

impl QueueConfig {
    /// Checks size, alignment and extent of the areas and returns the size.
    ///
    /// Whether there is memory at the addresses is found out when the queue maps them.
    pub fn validate(&self) -> Result<u16, ConfigError> {
        let size = match u16::try_from(self.size) {
            Ok(size @ 1..=MAX_QUEUE_SIZE) => size,
            _ => return Err(ConfigError::Size(self.size)),
        };
        let n = usize::from(size);
        if self.features.contains(Features::RING_PACKED) {
            area(
                "descriptor ring",
                self.desc,
                packed::DESCRIPTOR_ALIGN,
                packed::descriptor_ring_len(n),
            )?;
            area(
                "driver event suppression",
                self.avail,
                packed::EVENT_ALIGN,
                packed::EVENT_LEN,
            )?;
            area(
                "device event suppression",
                self.used,
                packed::EVENT_ALIGN,
                packed::EVENT_LEN,
            )?;
            return Ok(size);
        }
        if !size.is_power_of_two() {
            return Err(ConfigError::NotPowerOfTwo(self.size));
        }
        let event_idx = self.features.contains(Features::EVENT_IDX);
        area(
            "descriptor table",
            self.desc,
            split::DESCRIPTOR_ALIGN,
            split::descriptor_table_len(n),
        )?;
        area(
            "available ring",
            self.avail,
            split::AVAIL_ALIGN,
            split::avail_len(n, event_idx),
        )?;
        area(
            "used ring",
            self.used,
            split::USED_ALIGN,
            split::used_len(n, event_idx),
        )?;
        Ok(size)
    }
}

fn area(area: &'static str, addr: GuestAddress, align: u64, len: usize) -> Result<(), ConfigError> {
    let addr = addr.0;
    if !addr.is_multiple_of(align) {
        return Err(ConfigError::Misaligned { area, addr, align });
    }
    match addr.checked_add(len as u64) {
        Some(_) => Ok(()),
        None => Err(ConfigError::Overflow { area, addr, len }),
    }
}
