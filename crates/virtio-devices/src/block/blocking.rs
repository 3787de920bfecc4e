use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vring::{Chain, View};

use super::backend::BlockBackend;
use super::pool::Pool;
use super::request::{Finished, Request};
use crate::dma::DmaView;

/// A queue's operations on a thread pool.
pub(super) struct BlockingIo<M: DmaView, B> {
    backend: Arc<B>,
    pool: Arc<Pool>,
    durable: bool,
    in_flight: usize,
    done: Arc<Done<M>>,
}

/// Where the threads leave what they finished.
struct Done<M: DmaView> {
    list: Mutex<Vec<Finished<M>>>,
    more: Condvar,
    event: EventFd,
}

impl<M: DmaView, B: BlockBackend> BlockingIo<M, B> {
    /// `durable`: every write goes to stable storage.
    pub(super) fn new(backend: Arc<B>, pool: Arc<Pool>, durable: bool) -> io::Result<Self> {
        Ok(Self {
            backend,
            pool,
            durable,
            in_flight: 0,
            done: Arc::new(Done {
                list: Mutex::new(Vec::new()),
                more: Condvar::new(),
                event: EventFd::new(EFD_NONBLOCK)?,
            }),
        })
    }

    /// Readable when something has finished.
    pub(super) fn event(&self) -> &EventFd {
        &self.done.event
    }

    pub(super) fn submit(&mut self, chain: Chain<View<M>>, request: Request) {
        let backend = Arc::clone(&self.backend);
        let done = Arc::clone(&self.done);
        let durable = self.durable;
        self.in_flight += 1;
        self.pool.run(move || {
            let result = perform(&*backend, &chain, request, durable);
            let mut list = done.list.lock().unwrap_or_else(PoisonError::into_inner);
            list.push(Finished {
                chain,
                request,
                result,
            });
            // Fails only if the counter is full, and then the event is pending.
            let _ = done.event.write(1);
            done.more.notify_one();
        });
    }

    /// Performs a request on this thread.
    pub(super) fn perform(&self, chain: &Chain<View<M>>, request: Request) -> io::Result<()> {
        perform(&*self.backend, chain, request, self.durable)
    }

    /// What has finished. With `wait` it waits for something, unless nothing is in flight.
    pub(super) fn finished(&mut self, wait: bool) -> Vec<Finished<M>> {
        if self.in_flight == 0 {
            return Vec::new();
        }
        let _ = self.done.event.read();
        let mut list = self
            .done
            .list
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while wait && list.is_empty() {
            list = self
                .done
                .more
                .wait(list)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.in_flight -= list.len();
        std::mem::take(&mut *list)
    }
}

fn perform<M: DmaView, B: BlockBackend>(
    backend: &B,
    chain: &Chain<View<M>>,
    request: Request,
    durable: bool,
) -> io::Result<()> {
    match request {
        Request::Read { offset, .. } => backend.read(offset, &request.buffers(chain)),
        Request::Write { offset, .. } => backend.write(offset, &request.buffers(chain), durable),
        Request::Flush => backend.flush(),
        Request::Discard { offset, len } => backend.discard(offset, len),
        Request::WriteZeroes { offset, len, unmap } => backend.write_zeroes(offset, len, unmap),
        Request::GetId => Ok(()),
    }
}
