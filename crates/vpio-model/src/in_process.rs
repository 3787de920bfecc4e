//! Memory and a device in this process: for tests, for replaying traces, and to try a model out.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::engine::{Dma, Physical, Translation};
use crate::language::Access;

/// What a guest has, and what shadows are in.
#[derive(Debug)]
pub struct Memory {
    translation: Translation,
    guest: Mutex<Vec<u8>>,
    shadow: Mutex<Vec<u8>>,
    shadow_base: u64,
}

impl Memory {
    /// `guest` bytes from 0, and `shadow` bytes that the device sees at `shadow_base`.
    pub fn new(guest: usize, translation: Translation, shadow: usize, shadow_base: u64) -> Self {
        Self {
            translation,
            guest: Mutex::new(vec![0; guest]),
            shadow: Mutex::new(vec![0; shadow]),
            shadow_base,
        }
    }
}

/// What is behind a lock that nothing panics under.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn part(bytes: &mut [u8], at: u64, length: usize) -> Option<&mut [u8]> {
    let first = usize::try_from(at).ok()?;
    bytes.get_mut(first..first.checked_add(length)?)
}

impl Dma for Memory {
    fn translate(&self, address: u64, length: u64, access: Access) -> Option<u64> {
        self.translation.translate(address, length, access)
    }

    fn read(&self, address: u64, data: &mut [u8]) -> bool {
        let mut guest = lock(&self.guest);
        let from = part(&mut guest, address, data.len());
        from.map(|from| data.copy_from_slice(from)).is_some()
    }

    fn write(&self, address: u64, data: &[u8]) -> bool {
        let mut guest = lock(&self.guest);
        let to = part(&mut guest, address, data.len());
        to.map(|to| to.copy_from_slice(data)).is_some()
    }

    fn shadow(&self) -> u64 {
        self.shadow_base
    }

    fn read_shadow(&self, offset: u64, data: &mut [u8]) {
        if let Some(from) = part(&mut lock(&self.shadow), offset, data.len()) {
            data.copy_from_slice(from);
        }
    }

    fn write_shadow(&self, offset: u64, data: &[u8]) {
        if let Some(to) = part(&mut lock(&self.shadow), offset, data.len()) {
            to.copy_from_slice(data);
        }
    }
}

/// A device that keeps what is written to it and does nothing else.
#[derive(Debug, Default)]
pub struct Registers {
    values: Mutex<BTreeMap<(u8, u64), u64>>,
}

impl Registers {
    /// What a register was last given, by the guest or by [`set`](Self::set).
    pub fn get(&self, space: u8, offset: u64) -> Option<u64> {
        lock(&self.values).get(&(space, offset)).copied()
    }

    /// What a register is to show.
    pub fn set(&self, space: u8, offset: u64, value: u64) {
        lock(&self.values).insert((space, offset), value);
    }
}

impl Physical for Registers {
    fn read(&self, space: u8, offset: u64, _width: u8) -> u64 {
        self.get(space, offset).unwrap_or(0)
    }

    fn write(&self, space: u8, offset: u64, _width: u8, value: u64) {
        self.set(space, offset, value);
    }

    fn reset(&self) {
        lock(&self.values).clear();
    }
}
