use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// A secret that who drives a physical function through VFIO sets, and that who drives one of its virtual functions has to know: what the
/// one does, the other is exposed to (Linux, `VFIO_DEVICE_FEATURE_PCI_VF_TOKEN`). Written as a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VfToken(Uuid);

/// What is not a token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no VF token, like 9b2b8f0e-5d0c-4f53-8c5e-6c1f7d3a2b10")]
pub struct TokenError(String);

impl VfToken {
    /// As the kernel has it: most significant byte first.
    pub const fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl FromStr for VfToken {
    type Err = TokenError;

    /// Parses a UUID, with hyphens: what the kernel parses too.
    fn from_str(text: &str) -> Result<Self, TokenError> {
        match Uuid::try_parse(text) {
            Ok(uuid) if text.len() == uuid::fmt::Hyphenated::LENGTH => Ok(Self(uuid)),
            _ => Err(TokenError(text.to_owned())),
        }
    }
}

impl fmt::Display for VfToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}
