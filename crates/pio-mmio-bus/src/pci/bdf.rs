use std::fmt;

/// A requester ID: the bus, device and function numbers that a PCI Express transaction carries
/// (PCI Express Base Specification §2.2.6.2). A function behind a bridge takes its bus number from the bridge's
/// secondary bus register, so the value changes when the guest renumbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequesterId(pub u16);

impl RequesterId {
    /// The function `devfn` of bus number `bus`.
    pub const fn new(bus: u8, devfn: u8) -> Self {
        Self(u16::from_be_bytes([bus, devfn]))
    }

    /// Device number (0 to 31) and function number (0 to 7) as one byte. Higher bits of either are dropped.
    pub const fn devfn_of(device: u8, function: u8) -> u8 {
        (device & 0x1f) << 3 | function & 7
    }

    /// Bus number, 0 to 255.
    pub const fn bus(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    /// Device number, 0 to 31.
    pub const fn device(self) -> u8 {
        self.0.to_le_bytes()[0] >> 3
    }

    /// Function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.0.to_le_bytes()[0] & 7
    }

    /// Device and function as one byte, as ARI and the IVRS/DMAR tables use it.
    pub const fn devfn(self) -> u8 {
        self.0.to_le_bytes()[0]
    }
}

impl fmt::Display for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}:{:02x}.{}",
            self.bus(),
            self.device(),
            self.function()
        )
    }
}
