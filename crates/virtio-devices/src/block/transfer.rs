//! All of the block device's unsafe code: system calls that read or write guest memory.
//!
//! The safe faces are [`read`] and [`write`], which are done with the memory when they return, and [`Uring`], which owns
//! each chain until the kernel is done with it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};
use vm_memory::VolatileSlice;
use vm_memory::bitmap::BitmapSlice;
use vring::{Chain, View};

use super::backend::BlockBackend;
use super::request::{Finished, Request};
use crate::dma::DmaView;

/// The most vectors that the kernel takes in one call.
const MAX_VECTORS: usize = 1024;

/// Vectors of guest memory, of which a part may be done.
struct Vectors {
    list: Vec<libc::iovec>,
    next: usize,
}

// SAFETY: the pointers are only dereferenced by the kernel, for which all threads are alike.
unsafe impl Send for Vectors {}

impl Vectors {
    fn new<B: BitmapSlice>(slices: &[VolatileSlice<'_, B>]) -> Self {
        let list = slices
            .iter()
            .map(|slice| libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            })
            .collect();
        Self { list, next: 0 }
    }

    /// What to pass to the next call.
    fn rest(&self) -> &[libc::iovec] {
        let rest = self.list.get(self.next..).unwrap_or_default();
        rest.get(..MAX_VECTORS).unwrap_or(rest)
    }

    /// Takes `done` bytes off the front.
    fn advance(&mut self, mut done: usize) {
        while let Some(vector) = self.list.get_mut(self.next) {
            if done < vector.iov_len {
                vector.iov_base = vector.iov_base.wrapping_byte_add(done);
                vector.iov_len -= done;
                return;
            }
            done -= vector.iov_len;
            self.next += 1;
        }
    }
}

/// Fills `slices` from `file` at `offset`.
pub(super) fn read<B: BitmapSlice>(
    file: BorrowedFd<'_>,
    offset: u64,
    slices: &[VolatileSlice<'_, B>],
) -> io::Result<()> {
    transfer(offset, slices, |vectors, count, offset| {
        // SAFETY: the vectors point to memory that `slices` borrows during the call.
        unsafe { libc::preadv64(file.as_raw_fd(), vectors, count, offset) }
    })?;
    mark_dirty(slices);
    Ok(())
}

/// Writes `slices` to `file` at `offset`; if `durable`, to stable storage.
pub(super) fn write<B: BitmapSlice>(
    file: BorrowedFd<'_>,
    offset: u64,
    slices: &[VolatileSlice<'_, B>],
    durable: bool,
) -> io::Result<()> {
    let flags = if durable { libc::RWF_DSYNC } else { 0 };
    transfer(offset, slices, |vectors, count, offset| {
        // SAFETY: the vectors point to memory that `slices` borrows during the call.
        unsafe { libc::pwritev2(file.as_raw_fd(), vectors, count, offset, flags) }
    })
}

/// Calls `call` until all bytes are transferred.
fn transfer<B: BitmapSlice>(
    mut offset: u64,
    slices: &[VolatileSlice<'_, B>],
    call: impl Fn(*const libc::iovec, libc::c_int, libc::off64_t) -> isize,
) -> io::Result<()> {
    let mut vectors = Vectors::new(slices);
    while !vectors.rest().is_empty() {
        let rest = vectors.rest();
        let count = libc::c_int::try_from(rest.len()).map_err(io::Error::other)?;
        let at = libc::off64_t::try_from(offset).map_err(io::Error::other)?;
        match usize::try_from(call(rest.as_ptr(), count, at)) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(done) => {
                vectors.advance(done);
                offset = offset.saturating_add(done as u64);
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

fn mark_dirty<B: BitmapSlice>(slices: &[VolatileSlice<'_, B>]) {
    for slice in slices {
        slice.bitmap().mark_dirty(0, slice.len());
    }
}

/// A queue's reads, writes and flushes of a file on an io_uring.
pub(super) struct Uring<M: DmaView, B> {
    ring: IoUring,
    /// Keeps the file open.
    _backend: Arc<B>,
    file: RawFd,
    durable: bool,
    operations: Vec<Option<Operation<M>>>,
    free: Vec<usize>,
    /// What the kernel would not even take.
    refused: Vec<Finished<M>>,
}

struct Operation<M: DmaView> {
    chain: Chain<View<M>>,
    request: Request,
    /// Where in the file the rest of the vectors goes.
    offset: u64,
    vectors: Vectors,
}

impl<M: DmaView, B: BlockBackend> Uring<M, B> {
    /// A ring for a queue of `size`; `None` if the back-end has no file, or the kernel refuses. `durable`: every write goes to stable
    /// storage.
    pub(super) fn new(backend: &Arc<B>, size: u16, durable: bool) -> Option<Self> {
        let file = backend.file()?.as_raw_fd();
        let ring = IoUring::builder()
            .setup_clamp()
            .build(u32::from(size))
            .ok()?;
        Some(Self {
            ring,
            _backend: Arc::clone(backend),
            file,
            durable,
            operations: Vec::new(),
            free: Vec::new(),
            refused: Vec::new(),
        })
    }

    /// Readable when something has finished.
    pub(super) fn event(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Whether the kernel has reported the end of something that was not taken yet.
    pub(super) fn has_finished(&mut self) -> bool {
        !self.ring.completion().is_empty()
    }

    /// Whether it can carry out `request`.
    pub(super) fn takes(request: Request) -> bool {
        matches!(
            request,
            Request::Read { .. } | Request::Write { .. } | Request::Flush
        )
    }

    /// Accepts a request. It begins with the next [`finished`](Self::finished).
    pub(super) fn submit(&mut self, chain: Chain<View<M>>, request: Request) {
        let offset = match request {
            Request::Read { offset, .. } | Request::Write { offset, .. } => offset,
            _ => 0,
        };
        let vectors = Vectors::new(&request.buffers(&chain));
        let slot = self.free.pop().unwrap_or_else(|| {
            self.operations.push(None);
            self.operations.len() - 1
        });
        if let Some(entry) = self.operations.get_mut(slot) {
            *entry = Some(Operation {
                chain,
                request,
                offset,
                vectors,
            });
        }
        self.push(slot);
    }

    /// Puts the operation in `slot` into the submission queue.
    fn push(&mut self, slot: usize) {
        if let Err(error) = self.try_push(slot)
            && let Some(finished) = self.take(slot, Err(error))
        {
            self.refused.push(finished);
        }
    }

    fn try_push(&mut self, slot: usize) -> io::Result<()> {
        let Some(operation) = self.operations.get(slot).and_then(Option::as_ref) else {
            return Ok(());
        };
        let entry = operation
            .entry(types::Fd(self.file), self.durable)
            .user_data(slot as u64);
        loop {
            // SAFETY: the vectors and the guest memory they point to belong to the operation, which stays in its slot, and its
            // allocation in place, until the kernel has reported the end of it. Dropping `self` waits for that.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return Ok(());
            }
            self.enter(0)?;
            if self.ring.submission().is_full() {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.operations.len() - self.free.len()
    }

    /// Submits what is queued and waits for `want` completions.
    fn enter(&mut self, want: usize) -> io::Result<()> {
        let in_flight = self.in_flight();
        loop {
            match self.ring.submit_and_wait(want) {
                Ok(_) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // Short of resources: what is in flight will free some, and then this is called again.
                    Some(libc::EAGAIN | libc::EBUSY)
                        if self.ring.submission().len() < in_flight =>
                    {
                        return Ok(());
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    /// Submits what was accepted, and appends what has finished to `into`. With `wait` it waits for something, unless nothing is in
    /// flight.
    pub(super) fn finished(&mut self, wait: bool, into: &mut Vec<Finished<M>>) -> io::Result<()> {
        let before = into.len();
        into.append(&mut self.refused);
        loop {
            let want = usize::from(wait && into.len() == before && self.in_flight() > 0);
            let entered = if want > 0 || !self.ring.submission().is_empty() {
                self.enter(want)
            } else {
                Ok(())
            };
            let completions: Vec<(u64, i32)> = self
                .ring
                .completion()
                .map(|completion| (completion.user_data(), completion.result()))
                .collect();
            for &(slot, result) in &completions {
                self.complete(slot, result, into);
            }
            entered?;
            let queued_again = !completions.is_empty() && !self.ring.submission().is_empty();
            let starved = wait && into.len() == before && self.in_flight() > 0;
            if !queued_again && !starved {
                return Ok(());
            }
        }
    }

    /// Takes note of the kernel's result for an operation; a part that is left is queued again.
    fn complete(&mut self, slot: u64, result: i32, into: &mut Vec<Finished<M>>) {
        let Some((slot, operation)) = usize::try_from(slot)
            .ok()
            .and_then(|slot| Some((slot, self.operations.get_mut(slot)?.as_mut()?)))
        else {
            return;
        };
        match operation.advance(result) {
            Some(result) => into.extend(self.take(slot, result)),
            None => self.push(slot),
        }
    }

    /// Frees the slot of an operation that the kernel is done with.
    fn take(&mut self, slot: usize, result: io::Result<()>) -> Option<Finished<M>> {
        let Operation { chain, request, .. } = self.operations.get_mut(slot)?.take()?;
        self.free.push(slot);
        if matches!(request, Request::Read { .. }) {
            mark_dirty(&request.buffers(&chain));
        }
        Some(Finished {
            chain,
            request,
            result,
        })
    }
}

impl<M: DmaView> Operation<M> {
    fn entry(&self, file: types::Fd, durable: bool) -> squeue::Entry {
        let vectors = self.vectors.rest();
        let count = u32::try_from(vectors.len()).unwrap_or(0);
        match self.request {
            Request::Read { .. } => opcode::Readv::new(file, vectors.as_ptr(), count)
                .offset(self.offset)
                .build(),
            Request::Write { .. } => opcode::Writev::new(file, vectors.as_ptr(), count)
                .offset(self.offset)
                .rw_flags(if durable { libc::RWF_DSYNC } else { 0 })
                .build(),
            _ => opcode::Fsync::new(file)
                .flags(types::FsyncFlags::DATASYNC)
                .build(),
        }
    }

    /// Takes note of the kernel's result; `None` if there is more to do.
    fn advance(&mut self, result: i32) -> Option<io::Result<()>> {
        let done = match usize::try_from(result) {
            Ok(done) => done,
            Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN) => return None,
            Err(_) => return Some(Err(io::Error::from_raw_os_error(result.wrapping_neg()))),
        };
        if matches!(self.request, Request::Flush) {
            return Some(Ok(()));
        }
        self.vectors.advance(done);
        self.offset = self.offset.saturating_add(done as u64);
        if self.vectors.rest().is_empty() {
            Some(Ok(()))
        } else if done == 0 {
            Some(Err(io::ErrorKind::UnexpectedEof.into()))
        } else {
            None
        }
    }
}

impl<M: DmaView, B> Drop for Uring<M, B> {
    /// Waits until the kernel is done with the guest memory.
    fn drop(&mut self) {
        while self.operations.iter().any(Option::is_some) {
            let completions: Vec<u64> = self
                .ring
                .completion()
                .map(|completion| completion.user_data())
                .collect();
            for slot in completions {
                if let Some(entry) = usize::try_from(slot)
                    .ok()
                    .and_then(|slot| self.operations.get_mut(slot))
                {
                    *entry = None;
                }
            }
            if self.operations.iter().all(Option::is_none) {
                return;
            }
            if let Err(error) = self.ring.submit_and_wait(1)
                && error.raw_os_error() != Some(libc::EINTR)
            {
                // The kernel may still write to the chains: give them up.
                std::mem::forget(std::mem::take(&mut self.operations));
                return;
            }
        }
    }
}
