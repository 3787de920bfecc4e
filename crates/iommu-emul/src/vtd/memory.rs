use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions, VolatileMemory, bitmap::Bitmap};

/// Reads `N` words at `address`, each once and whole; `None` if they are not all memory.
pub(crate) fn read_words<const N: usize, M: GuestMemory + ?Sized>(
    memory: &M,
    address: u64,
) -> Option<[u64; N]> {
    let mut words = [0; N];
    for (word, offset) in words.iter_mut().zip((0..).step_by(8)) {
        let address = GuestAddress(address.checked_add(offset)?);
        *word = u64::from_le(memory.load(address, Ordering::Acquire).ok()?);
    }
    Some(words)
}

/// Updates the word at `address` atomically, as `fetch_update` does: `Err` holds the word that `update` refused.
/// `None` if it is not memory.
pub(crate) fn update_word<M: GuestMemory + ?Sized>(
    memory: &M,
    address: u64,
    mut update: impl FnMut(u64) -> Option<u64>,
) -> Option<Result<u64, u64>> {
    let slice = memory
        .get_slices(GuestAddress(address), 8, Permissions::ReadWrite)
        .ok()?
        .next()?
        .ok()?;
    let word = slice.get_atomic_ref::<AtomicU64>(0).ok()?;
    let result = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
        update(u64::from_le(word)).map(u64::to_le)
    });
    if result.is_ok() {
        slice.bitmap().mark_dirty(0, 8);
    }
    Some(result.map(u64::from_le).map_err(u64::from_le))
}
