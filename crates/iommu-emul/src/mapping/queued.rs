use std::{
    cell::Cell,
    sync::atomic::{Ordering, fence},
};

use vm_memory::{Bytes, GuestAddress};

use super::{PAGE_SIZE, PageRange, Ticket, tables::Invalidator};
use crate::vtd::PhysicalMemory;

/// Descriptors in the queue: one page of 128-bit ones.
const ENTRIES: u64 = 256;
/// Requests that may be under way: each takes two descriptors, and a full queue would look empty.
const REQUESTS: u64 = ENTRIES / 2 - 1;

/// The driver's side of a unit's invalidation queue (§6.5.2): each request is an IOTLB invalidation of one domain and a wait that
/// writes a status.
pub struct QueuedInvalidation<M, T> {
    memory: M,
    queue: u64,
    status: u64,
    domain: u16,
    submitted: Cell<u64>,
    write_tail: T,
}

impl<M: PhysicalMemory, T: Fn(u64)> QueuedInvalidation<M, T> {
    /// A queue in the page at `queue`, which the unit was told of and whose head and tail are 0; statuses go to the zeroed 4 bytes
    /// at `status`. `write_tail` writes the tail register.
    pub fn new(memory: M, queue: u64, status: u64, domain: u16, write_tail: T) -> Self {
        Self {
            memory,
            queue,
            status,
            domain,
            submitted: Cell::new(0),
            write_tail,
        }
    }

    /// The last request that is done. Statuses are the low 32 bits of tickets, less than 2^32 apart from the last.
    fn completed(&self) -> u64 {
        let status = self
            .memory
            .memory()
            .load::<u32>(GuestAddress(self.status), Ordering::Acquire)
            .unwrap_or(0);
        let submitted = self.submitted.get();
        let [a, b, c, d, ..] = submitted.to_le_bytes();
        let behind = u32::from_le_bytes([a, b, c, d]).wrapping_sub(status);
        submitted.saturating_sub(behind.into())
    }

    fn put(&self, index: u64, low: u64, high: u64) {
        let memory = self.memory.memory();
        let at = self.queue + index % ENTRIES * 16;
        // A queue outside memory is the owner's mistake; the unit reports it.
        let _unit_reports = memory.store(high, GuestAddress(at + 8), Ordering::Relaxed);
        let _unit_reports = memory.store(low, GuestAddress(at), Ordering::Release);
    }
}

impl<M: PhysicalMemory, T: Fn(u64)> Invalidator for QueuedInvalidation<M, T> {
    fn invalidate(&self, iova: Option<PageRange>) -> Ticket {
        while self.submitted.get() - self.completed() >= REQUESTS {
            std::hint::spin_loop();
        }
        let sequence = self.submitted.get();
        self.submitted.set(sequence + 1);
        let ticket = sequence + 1;
        let domain = u64::from(self.domain) << 16;
        let (granularity, address) = match iova {
            // Ranges are naturally aligned, as the allocator returns them, and up to 2^18 pages (MAMV).
            Some(range) if range.pages <= 1 << 18 => {
                let order = u64::from(range.pages.next_power_of_two().trailing_zeros());
                (3, range.address & !((PAGE_SIZE << order) - 1) | order)
            }
            _ => (2, 0),
        };
        self.put(2 * sequence, domain | granularity << 4 | 2, address);
        self.put(
            2 * sequence + 1,
            (ticket & 0xffff_ffff) << 32 | 1 << 5 | 5,
            self.status,
        );
        fence(Ordering::Release);
        (self.write_tail)(2 * ticket % ENTRIES * 16);
        Ticket(ticket)
    }

    fn done(&self, ticket: Ticket) -> bool {
        self.completed() >= ticket.0
    }
}
