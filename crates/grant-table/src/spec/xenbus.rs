//! The states of devices (`io/xenbus.h`).

/// How far one end of a device has come, as its `state` node says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum XenbusState {
    /// There is no such node.
    #[default]
    Unknown = 0,
    /// Being set up.
    Initialising = 1,
    /// Set up, waiting for what the other end tells.
    InitWait = 2,
    /// Everything is told, waiting for the other end to connect.
    Initialised = 3,
    /// In use.
    Connected = 4,
    /// Being taken down, as there was an error or the device goes.
    Closing = 5,
    /// Taken down.
    Closed = 6,
    /// Changing while it is in use.
    Reconfiguring = 7,
    /// Changed.
    Reconfigured = 8,
}

impl XenbusState {
    /// All states, by number.
    pub const ALL: [Self; 9] = [
        Self::Unknown,
        Self::Initialising,
        Self::InitWait,
        Self::Initialised,
        Self::Connected,
        Self::Closing,
        Self::Closed,
        Self::Reconfiguring,
        Self::Reconfigured,
    ];

    /// The state that a node's value tells; unknown if it tells none.
    pub fn parse(value: &[u8]) -> Self {
        let number = std::str::from_utf8(value)
            .ok()
            .and_then(|text| text.parse::<usize>().ok());
        number
            .and_then(|number| Self::ALL.get(number).copied())
            .unwrap_or_default()
    }

    /// The value of the node.
    pub fn value(self) -> String {
        (self as u8).to_string()
    }
}
