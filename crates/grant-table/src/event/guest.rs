//! The guest's side of delivery: which events have happened.

use std::sync::atomic::Ordering;

use crate::frame::Frame;
use crate::spec::event::{Port, fifo, shared_info, vcpu_info};

/// The events of a virtual CPU in the two-level ABI.
#[derive(Debug)]
pub struct TwoLevelEvents {
    shared_info: Frame,
    /// The virtual CPU's info, in the shared info page.
    vcpu_info: usize,
}

impl TwoLevelEvents {
    /// The events of a virtual CPU that has its info in the shared info page; none for one that has not.
    pub fn new(shared_info: Frame, vcpu: usize) -> Option<Self> {
        (vcpu < shared_info::VCPUS).then(|| Self {
            shared_info,
            vcpu_info: vcpu * vcpu_info::SIZE,
        })
    }

    /// Takes the events that are pending and not masked, lowest port first.
    pub fn take(&self) -> Vec<Port> {
        let mut ports = Vec::new();
        if let Some(upcall) = self
            .shared_info
            .u8(self.vcpu_info + vcpu_info::UPCALL_PENDING)
        {
            upcall.store(0, Ordering::SeqCst);
        }
        let select = self
            .shared_info
            .u64(self.vcpu_info + vcpu_info::PENDING_SELECT);
        let selected = select.map_or(0, |select| select.swap(0, Ordering::SeqCst));
        for word in (0u8..64).filter(|word| selected >> word & 1 != 0) {
            let at = usize::from(word) * 8;
            let pending = self.shared_info.u64(shared_info::PENDING + at);
            let mask = self.shared_info.u64(shared_info::MASK + at);
            let (Some(pending), Some(mask)) = (pending, mask) else {
                continue;
            };
            let taken = pending.load(Ordering::SeqCst) & !mask.load(Ordering::SeqCst);
            pending.fetch_and(!taken, Ordering::SeqCst);
            let bits = (0u8..64).filter(|bit| taken >> bit & 1 != 0);
            ports.extend(bits.map(|bit| Port(u32::from(word) * 64 + u32::from(bit))));
        }
        ports
    }

    /// Masks a port. To unmask it is the hypervisor's business.
    pub fn mask(&self, port: Port) {
        let at = usize::try_from(port.0 / 64)
            .ok()
            .and_then(|word| word.checked_mul(8));
        if let Some(word) =
            at.and_then(|at| self.shared_info.u64(shared_info::MASK.checked_add(at)?))
        {
            word.fetch_or(1 << (port.0 % 64), Ordering::SeqCst);
        }
    }
}

/// The events of a virtual CPU in the FIFO ABI.
#[derive(Debug)]
pub struct FifoEvents {
    control: Frame,
    offset: usize,
    array: Vec<Frame>,
    /// The next port of each queue, where it is known.
    heads: [u32; 16],
}

impl FifoEvents {
    /// The events in the queues of the control block at `offset`, with the event words in `array`.
    pub fn new(control: Frame, offset: usize, array: Vec<Frame>) -> Self {
        Self {
            control,
            offset,
            array,
            heads: [0; 16],
        }
    }

    fn word(&self, port: u32) -> Option<&std::sync::atomic::AtomicU32> {
        let page = self.array.get(usize::try_from(port / fifo::WORDS).ok()?)?;
        page.u32(usize::try_from(port % fifo::WORDS).ok()?.checked_mul(4)?)
    }

    /// Takes the next event that is pending and not masked, highest priority first.
    pub fn take(&mut self) -> Option<Port> {
        loop {
            let ready = self.control.u32(self.offset.checked_add(fifo::READY)?)?;
            let bits = ready.load(Ordering::SeqCst);
            let queue = (0..fifo::PRIORITIES).find(|&priority| {
                let known = self
                    .heads
                    .get(usize::from(priority))
                    .is_some_and(|&head| head != 0);
                known || bits >> priority & 1 != 0
            })?;
            if let Some(port) = self.step(queue) {
                return Some(port);
            }
        }
    }

    /// Takes one event out of a queue; none if it is masked or not pending, or the queue is empty.
    fn step(&mut self, priority: u8) -> Option<Port> {
        let queue = usize::from(priority);
        let mut port = *self.heads.get(queue)?;
        if port == 0 {
            let ready = self.control.u32(self.offset.checked_add(fifo::READY)?)?;
            ready.fetch_and(!(1 << priority.min(15)), Ordering::SeqCst);
            let head = self
                .offset
                .checked_add(fifo::HEAD)?
                .checked_add(queue * 4)?;
            port = self.control.u32(head)?.load(Ordering::SeqCst);
        }
        let word = self.word(port)?;
        let old = word.fetch_and(!(fifo::LINKED | fifo::LINK), Ordering::SeqCst);
        if old & (fifo::PENDING | fifo::MASKED) == fifo::PENDING {
            word.fetch_and(!fifo::PENDING, Ordering::SeqCst);
        }
        *self.heads.get_mut(queue)? = old & fifo::LINK;
        (old & (fifo::PENDING | fifo::MASKED) == fifo::PENDING).then_some(Port(port))
    }

    /// Masks a port. To unmask it is the hypervisor's business.
    pub fn mask(&self, port: Port) {
        if let Some(word) = self.word(port.0) {
            word.fetch_or(fifo::MASKED, Ordering::SeqCst);
        }
    }
}
