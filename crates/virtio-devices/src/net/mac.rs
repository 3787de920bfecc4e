use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A hardware address (IEEE 802-2014, §8.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MacAddress(pub [u8; 6]);

/// A text that is not six hexadecimal bytes with colons between.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a hardware address such as 02:00:00:00:00:01")]
pub struct ParseMacError(String);

impl MacAddress {
    /// The address all stations listen to.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether frames to this address go to a group of stations; the broadcast address is one.
    pub fn is_multicast(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let byte = |digits: &str| match digits.len() {
            2 if !digits.starts_with('+') => u8::from_str_radix(digits, 16).ok(),
            _ => None,
        };
        text.split(':')
            .map(byte)
            .collect::<Option<Vec<u8>>>()
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
            .ok_or_else(|| ParseMacError(text.to_owned()))
    }
}
