use std::ops::Range;

use super::config::ConfigStateError;
use super::spec::CONFIG_SPACE_SIZE;

/// The bytes of a configuration space and what the guest may do to each bit.
pub(super) struct Registers {
    value: Box<[u8]>,
    /// What `value` is after a reset.
    initial: Box<[u8]>,
    /// Bits that hold what is written.
    writable: Box<[u8]>,
    /// Bits that a written 1 clears.
    clearable: Box<[u8]>,
}

impl Registers {
    pub(super) fn new() -> Self {
        let zeroes = || vec![0; CONFIG_SPACE_SIZE].into_boxed_slice();
        Self {
            value: zeroes(),
            initial: zeroes(),
            writable: zeroes(),
            clearable: zeroes(),
        }
    }

    /// Defines registers: their value now and after a reset.
    pub(super) fn define(&mut self, offset: usize, bytes: &[u8]) {
        self.set(offset, bytes);
        copy(&mut self.initial, offset, bytes);
    }

    pub(super) fn make_writable(&mut self, offset: usize, mask: &[u8]) {
        copy(&mut self.writable, offset, mask);
    }

    pub(super) fn make_clearable(&mut self, offset: usize, mask: &[u8]) {
        copy(&mut self.clearable, offset, mask);
    }

    pub(super) fn reset(&mut self) {
        self.value.copy_from_slice(&self.initial);
    }

    /// Sets the value whatever the masks say.
    pub(super) fn set(&mut self, offset: usize, bytes: &[u8]) {
        copy(&mut self.value, offset, bytes);
    }

    /// As the guest reads; all ones beyond the end.
    pub(super) fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0xff);
        for (to, from) in data.iter_mut().zip(self.value.iter().skip(offset)) {
            *to = *from;
        }
    }

    /// As the guest writes.
    pub(super) fn write(&mut self, offset: usize, data: &[u8]) {
        let masks = self.writable.iter().zip(&self.clearable).skip(offset);
        let bytes = self.value.iter_mut().skip(offset);
        for ((value, (writable, clearable)), data) in bytes.zip(masks).zip(data) {
            *value = (*value & !writable | data & writable) & !(data & clearable);
        }
    }

    /// As after a reset.
    pub(super) fn initial(&self, range: Range<usize>) -> &[u8] {
        self.initial.get(range).unwrap_or_default()
    }

    pub(super) fn slice(&self, range: Range<usize>) -> &[u8] {
        self.value.get(range).unwrap_or_default()
    }

    pub(super) fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.array(offset))
    }

    pub(super) fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes);
        bytes
    }

    /// Takes over saved values, unless they differ where the guest cannot write.
    pub(super) fn restore(&mut self, saved: &[u8]) -> Result<(), ConfigStateError> {
        if saved.len() != self.value.len() {
            return Err(ConfigStateError::Length(saved.len()));
        }
        let masks = self.writable.iter().zip(&self.clearable);
        let values = self.value.iter().zip(saved);
        for (offset, ((&expected, &saved), (writable, clearable))) in values.zip(masks).enumerate()
        {
            if (expected ^ saved) & !(writable | clearable) != 0 {
                return Err(ConfigStateError::ReadOnly {
                    offset,
                    saved,
                    expected,
                });
            }
        }
        self.value.copy_from_slice(saved);
        Ok(())
    }
}

fn copy(target: &mut [u8], offset: usize, bytes: &[u8]) {
    for (to, from) in target.iter_mut().skip(offset).zip(bytes) {
        *to = *from;
    }
}

/// The part of `range` that lies in `window`, counted from the start of `window`.
pub(super) fn within(range: &Range<usize>, window: &Range<usize>) -> Option<Range<usize>> {
    let start = range.start.max(window.start);
    let end = range.end.min(window.end);
    (start < end).then(|| start - window.start..end - window.start)
}
