//! The FIFO ABI: queues of events, linked through a word for each port, by priority.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::frame::Frame;
use crate::spec::Errno;
use crate::spec::event::{FIFO_PORTS, Port, fifo};

/// How often a word that the guest keeps changing is tried.
const ATTEMPTS: usize = 4;

/// The queues of one virtual CPU.
#[derive(Clone, Debug)]
struct Control {
    frame: Frame,
    offset: usize,
    /// The last port of each queue; 0 is none.
    tails: [u32; 16],
}

/// The event words and queues of a domain.
#[derive(Clone, Debug)]
pub(super) struct Fifo {
    array: Vec<Frame>,
    controls: Vec<Option<Control>>,
}

impl Fifo {
    pub(super) fn new(vcpus: usize) -> Self {
        Self {
            array: Vec::new(),
            controls: vec![None; vcpus],
        }
    }

    /// Sets the control block of a virtual CPU that has none.
    pub(super) fn set_control(
        &mut self,
        vcpu: usize,
        frame: Frame,
        offset: usize,
    ) -> Result<(), Errno> {
        let fits = offset
            .checked_add(fifo::CONTROL_SIZE)
            .is_some_and(|end| end <= 4096);
        if !fits || !offset.is_multiple_of(8) {
            return Err(Errno::Inval);
        }
        match self.controls.get_mut(vcpu).ok_or(Errno::NoEnt)? {
            Some(_) => Err(Errno::Inval),
            control => {
                let tails = [0; 16];
                *control = Some(Control {
                    frame,
                    offset,
                    tails,
                });
                Ok(())
            }
        }
    }

    /// Adds a page of words.
    pub(super) fn expand(&mut self, frame: Frame) -> Result<(), Errno> {
        if self.ports() >= FIFO_PORTS {
            return Err(Errno::NoSpc);
        }
        self.array.push(frame);
        Ok(())
    }

    /// Ports that have words.
    pub(super) fn ports(&self) -> u32 {
        u32::try_from(self.array.len()).map_or(u32::MAX, |pages| pages.saturating_mul(fifo::WORDS))
    }

    fn word(&self, port: Port) -> Option<&AtomicU32> {
        let page = self
            .array
            .get(usize::try_from(port.0 / fifo::WORDS).ok()?)?;
        page.u32(usize::try_from(port.0 % fifo::WORDS).ok()?.checked_mul(4)?)
    }

    /// Marks the event and puts it into the queue, unless it is masked or there; whether an upcall is due.
    /// None without a word: to be set when there is one. `last` is the queue that it was put into before.
    pub(super) fn set_pending(
        &mut self,
        port: Port,
        queue: (usize, u8),
        last: &mut Option<(usize, u8)>,
    ) -> Option<bool> {
        let word = self.word(port)?;
        let old = word.fetch_or(fifo::PENDING, Ordering::SeqCst);
        if old & (fifo::MASKED | fifo::LINKED) != 0
            || word.fetch_or(fifo::LINKED, Ordering::SeqCst) & fifo::LINKED != 0
        {
            return Some(false);
        }
        // It was taken out of the queue that it ended.
        if let Some(tail) = last.and_then(|(vcpu, priority)| self.tail(vcpu, priority))
            && *tail == port.0
        {
            *tail = 0;
        }
        *last = Some(queue);
        let (vcpu, priority) = queue;
        let tail = std::mem::replace(self.tail(vcpu, priority)?, port.0);
        if tail != 0 && self.word(Port(tail)).is_some_and(|word| link(word, port)) {
            return Some(false);
        }
        let control = self.controls.get(vcpu)?.as_ref()?;
        let head = control
            .offset
            .checked_add(fifo::HEAD)?
            .checked_add(usize::from(priority) * 4)?;
        control.frame.u32(head)?.store(port.0, Ordering::Release);
        let ready = control
            .frame
            .u32(control.offset.checked_add(fifo::READY)?)?;
        let bit = 1 << priority.min(15);
        Some(ready.fetch_or(bit, Ordering::SeqCst) & bit == 0)
    }

    fn tail(&mut self, vcpu: usize, priority: u8) -> Option<&mut u32> {
        let control = self.controls.get_mut(vcpu)?.as_mut()?;
        control.tails.get_mut(usize::from(priority))
    }

    /// Clears the mask bit; whether the event is pending.
    pub(super) fn unmask(&self, port: Port) -> bool {
        self.word(port).is_some_and(|word| {
            word.fetch_and(!fifo::MASKED, Ordering::SeqCst) & fifo::PENDING != 0
        })
    }

    pub(super) fn clear_pending(&self, port: Port) {
        if let Some(word) = self.word(port) {
            word.fetch_and(!fifo::PENDING, Ordering::SeqCst);
        }
    }
}

/// Links `port` behind the event of `word`, if that is in a queue. A guest that keeps changing the word spoils its own queue.
fn link(word: &AtomicU32, port: Port) -> bool {
    let attempt = |seen: u32| {
        if seen & fifo::LINKED == 0 {
            return Ok(false);
        }
        let new = seen & !(fifo::BUSY | fifo::LINK) | port.0 & fifo::LINK;
        word.compare_exchange(seen, new, Ordering::SeqCst, Ordering::SeqCst)
            .map(|_| true)
    };
    let mut seen = match attempt(word.load(Ordering::SeqCst)) {
        Ok(linked) => return linked,
        // Keeps the guest from unmasking meanwhile.
        Err(_) => word.fetch_or(fifo::BUSY, Ordering::SeqCst) | fifo::BUSY,
    };
    let mut linked = true;
    for _ in 0..ATTEMPTS {
        match attempt(seen) {
            Ok(true) => return true,
            Ok(false) => {
                linked = false;
                break;
            }
            Err(now) => seen = now,
        }
    }
    word.fetch_and(!fifo::BUSY, Ordering::SeqCst);
    linked
}
