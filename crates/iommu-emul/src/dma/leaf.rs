use crate::spec::interrupt::{RANGE_FIRST, RANGE_LAST};

/// What a request wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read,
    /// Write.
    Write,
}

/// A page that an address translates to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// First guest-physical address of the page, aligned to its size.
    pub output: u64,
    /// log2 of the page size in bytes.
    pub shift: u32,
    /// Reads are allowed.
    pub read: bool,
    /// Writes are allowed.
    pub write: bool,
}

impl Leaf {
    /// The identity page of 1 GiB around `address`.
    pub fn identity(address: u64) -> Self {
        Self {
            output: address & !((1 << 30) - 1),
            shift: 30,
            read: true,
            write: true,
        }
    }

    /// The page around `address` when nothing is translated; `None` in the interrupt address range.
    pub fn bypass(address: u64) -> Option<Self> {
        Self::identity(address).clear_of_interrupts(address)
    }

    #[inline]
    pub fn allows(self, access: Access) -> bool {
        match access {
            Access::Read => self.read,
            Access::Write => self.write,
        }
    }

    /// The part of this page, 2^`shift` bytes, that `address` translates into.
    pub fn narrow(self, address: u64, shift: u32) -> Self {
        let offset = address & ((1 << self.shift) - 1);
        Self {
            output: (self.output & !((1 << self.shift) - 1) | offset) & !((1 << shift) - 1),
            shift,
            ..self
        }
    }

    /// The part around `address` that overlaps the interrupt address range neither before nor after translation (VT-d §3.14), so
    /// that whoever caches it need not check; `None` if `address` is in the range or translates there.
    pub fn clear_of_interrupts(mut self, address: u64) -> Option<Self> {
        let overlaps = |first: u64, shift: u32| {
            first <= RANGE_LAST && RANGE_FIRST <= first | ((1 << shift) - 1)
        };
        while overlaps(address & !((1 << self.shift) - 1), self.shift)
            || overlaps(self.output, self.shift)
        {
            if self.shift <= 12 {
                return None;
            }
            self = self.narrow(address, self.shift - 9);
        }
        Some(self)
    }
}
