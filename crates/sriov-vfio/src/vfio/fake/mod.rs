//! Devices and I/O address spaces that answer by themselves, for tests, fuzzers and demonstrations: fakes of the seam. What they do not know
//! about a kernel is what the lab is for.

mod device;
mod dma;
mod host;
mod slot;
mod windows;

use std::sync::{Mutex, MutexGuard, PoisonError};

pub use device::{FakeDevice, IrqCall};
pub use dma::FakeDmaSpace;
pub use host::FakeHost;
pub use slot::FakeSlot;
pub use windows::FakeWindows;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
