use std::io;
use std::os::fd::BorrowedFd;

use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;

/// What a block device stores its data in.
///
/// Offsets and lengths are in bytes, multiples of 512, and within [`size`](Self::size) as it was when the device was made. Operations may run on
/// several threads at once, and block.
pub trait BlockBackend: Send + Sync + 'static {
    /// Size in bytes. What exceeds a multiple of 512 is not used.
    fn size(&self) -> u64;

    /// Whether writes are refused.
    fn read_only(&self) -> bool;

    /// The unit in which the medium is best accessed, in bytes: a power of two, at least 512.
    fn physical_block(&self) -> u32;

    /// Whether no operation ever waits: then they run where the queue is served, without a detour over other threads.
    fn is_immediate(&self) -> bool {
        false
    }

    /// Fills `buffers` from `offset` on.
    ///
    /// # Errors
    /// The medium failed, or ends early.
    fn read<B: BitmapSlice>(&self, offset: u64, buffers: &[VolatileSlice<'_, B>])
    -> io::Result<()>;

    /// Writes `buffers` at `offset`; if `durable`, to stable storage.
    ///
    /// # Errors
    /// The medium failed or is full.
    fn write<B: BitmapSlice>(
        &self,
        offset: u64,
        buffers: &[VolatileSlice<'_, B>],
        durable: bool,
    ) -> io::Result<()>;

    /// Brings all completed writes to stable storage.
    ///
    /// # Errors
    /// The medium failed: what was written since the last flush may be lost.
    fn flush(&self) -> io::Result<()>;

    /// Tells that the range is not needed any more. What it reads afterwards is not defined.
    ///
    /// # Errors
    /// The medium failed. A medium that cannot discard succeeds.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes the range read as zeros; its storage may be freed if `unmap`.
    ///
    /// # Errors
    /// The medium failed or is full.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;

    /// The file that io_uring may read, write and flush instead, at the same offsets.
    fn file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
