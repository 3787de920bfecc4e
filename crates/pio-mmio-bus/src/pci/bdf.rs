use std::fmt;

/// A requester ID: the bus, device and function numbers that a PCI Express transaction carries
/// (PCI Express Base Specification §2.2.6.2). A function behind a bridge takes its bus number from the bridge's
/// secondary bus register, so the value changes when the guest renumbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequesterId(pub u16);

impl RequesterId {
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
