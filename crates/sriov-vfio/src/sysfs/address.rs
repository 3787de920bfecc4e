use std::fmt;
use std::str::FromStr;

use pio_mmio_bus::pci::RequesterId;
use serde::{Serialize, Serializer};

/// The name of a function on this machine: its segment (Linux says domain) and requester ID, written `0000:04:10.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    /// Segment number; above 16 bits for buses that Linux makes up.
    pub domain: u32,
    /// Bus, device and function.
    pub id: RequesterId,
}

/// What is not the name of a function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no PCI address, like 0000:04:10.0 or 04:10.0")]
pub struct AddressError(String);

impl FromStr for PciAddress {
    type Err = AddressError;

    /// Parses `DDDD:BB:DD.F` in hexadecimal; without domain it is 0.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let error = || AddressError(text.to_owned());
        let number = |digits: &str, limit: u32| {
            let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            let value = u32::from_str_radix(digits, 16).ok();
            value.filter(|&value| plain && value <= limit)
        };
        let byte =
            |digits: &str, limit| number(digits, limit).and_then(|value| u8::try_from(value).ok());
        let (domain, rest) = match text.split(':').count() {
            3 => text.split_once(':').ok_or_else(error)?,
            _ => ("0", text),
        };
        let (bus, rest) = rest.split_once(':').ok_or_else(error)?;
        let (device, function) = rest.split_once('.').ok_or_else(error)?;
        let parsed = (
            number(domain, u32::MAX),
            byte(bus, 0xff),
            byte(device, 0x1f),
            byte(function, 7),
        );
        match parsed {
            (Some(domain), Some(bus), Some(device), Some(function)) => Ok(Self {
                domain,
                id: RequesterId::new(bus, RequesterId::devfn_of(device, function)),
            }),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{}", self.domain, self.id)
    }
}

impl Serialize for PciAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
