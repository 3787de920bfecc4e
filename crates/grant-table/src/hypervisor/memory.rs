//! What stands behind a domain's frame numbers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::frame::Frame;
use crate::guest::Access;
use crate::spec::PAGE_SIZE;
use crate::spec::grant::Refusal;

/// A domain's memory, as the hypervisor sees it.
///
/// Called with locks of grant tables held: implementations call nothing of the hypervisor's, but for `place` in [`give`](Self::give).
pub trait Memory: Send + Sync {
    /// The domain's own frame at `number`, and what may be done with it; none where there is none, or only one that another domain
    /// granted.
    fn frame(&self, number: u64) -> Option<(Frame, Access)>;

    /// Lends the domain's own frames for a batch of operations.
    fn frames(&self) -> Box<dyn Frames + '_> {
        Box::new(OneByOne {
            memory: self,
            last: None,
        })
    }

    /// Maps a granted frame at `address`. Frames may be lent meanwhile.
    ///
    /// # Errors
    ///
    /// The address is unsuitable or occupied.
    fn map(&self, address: u64, frame: Frame, access: Access) -> Result<(), Refusal>;

    /// Takes the granted frame with number `frame` away from `address`; where `replacement` is not 0, the mapping there moves to `address`.
    ///
    /// # Errors
    ///
    /// The frame is not mapped there, or the replacement is unsuitable. Nothing has changed.
    fn unmap(&self, address: u64, frame: u64, replacement: u64) -> Result<(), Refusal>;

    /// Returns when no processor or device can reach what was unmapped or taken before the call.
    fn flush(&self) {}

    /// Takes a frame that nobody else holds away from the domain, for good.
    ///
    /// # Errors
    ///
    /// [`Refusal::BadPage`]: there is none, or someone else holds it.
    fn take(&self, number: u64) -> Result<Frame, Refusal>;

    /// Adds a frame at the number that `place` tells, unless the domain has no room or `place` declines, which is asked last.
    /// Whether the frame was added.
    fn give(&self, frame: Frame, place: &mut dyn FnMut() -> Option<u64>) -> bool;
}

/// A domain's own frames, lent by [`Memory::frames`]. While they are, `take` and `give` may wait; whoever has them borrowed calls neither
/// these nor `frame` of the same memory, and borrows those of two domains in the order of the domains only.
pub trait Frames {
    /// As [`Memory::frame`].
    fn frame(&mut self, number: u64) -> Option<(&Frame, Access)>;
}

/// Frames of a memory that has no way to lend them.
struct OneByOne<'m, M: ?Sized> {
    memory: &'m M,
    last: Option<(Frame, Access)>,
}

impl<M: Memory + ?Sized> Frames for OneByOne<'_, M> {
    fn frame(&mut self, number: u64) -> Option<(&Frame, Access)> {
        self.last = self.memory.frame(number);
        self.last.as_ref().map(|(frame, access)| (frame, *access))
    }
}

impl<M: Memory + ?Sized> Memory for std::sync::Arc<M> {
    fn frame(&self, number: u64) -> Option<(Frame, Access)> {
        (**self).frame(number)
    }

    fn frames(&self) -> Box<dyn Frames + '_> {
        (**self).frames()
    }

    fn map(&self, address: u64, frame: Frame, access: Access) -> Result<(), Refusal> {
        (**self).map(address, frame, access)
    }

    fn unmap(&self, address: u64, frame: u64, replacement: u64) -> Result<(), Refusal> {
        (**self).unmap(address, frame, replacement)
    }

    fn flush(&self) {
        (**self).flush();
    }

    fn take(&self, number: u64) -> Result<Frame, Refusal> {
        (**self).take(number)
    }

    fn give(&self, frame: Frame, place: &mut dyn FnMut() -> Option<u64>) -> bool {
        (**self).give(frame, place)
    }
}

#[derive(Debug, Default)]
enum Slot {
    #[default]
    Empty,
    Own,
    Granted(Frame, Access),
}

type Own = Box<[Option<Frame>]>;

/// Memory in this process: pages that are allocated one by one.
#[derive(Debug)]
pub struct Pages {
    /// The domain's own pages. Locked before a slot.
    own: RwLock<Own>,
    slots: Box<[Mutex<Slot>]>,
    owned: AtomicUsize,
    limit: usize,
}

impl Pages {
    /// `size` frame numbers from 0, of which the first `owned` have a page of zeros. It may own `limit` pages in all.
    pub fn new(size: usize, owned: usize, limit: usize) -> Self {
        let slot = |index| match index < owned {
            true => Slot::Own,
            false => Slot::Empty,
        };
        let own = |index| (index < owned).then(Frame::allocate);
        Self {
            own: RwLock::new((0..size).map(own).collect()),
            slots: (0..size).map(|index| Mutex::new(slot(index))).collect(),
            owned: AtomicUsize::new(owned.min(size)),
            limit,
        }
    }

    /// The page at `number` for the domain's own code: its own, or one that is granted to it.
    pub fn reach(&self, number: u64) -> Option<(Frame, Access)> {
        self.frame(number).or_else(|| match &*self.slot(number)? {
            Slot::Granted(frame, access) => Some((frame.clone(), *access)),
            Slot::Empty | Slot::Own => None,
        })
    }

    /// Gives the domain's own page at `number` up. It lives on where it is mapped.
    pub fn release(&self, number: u64) -> bool {
        self.remove(number, |_| true).is_some()
    }

    fn own(&self) -> RwLockReadGuard<'_, Own> {
        self.own.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn own_mut(&self) -> RwLockWriteGuard<'_, Own> {
        self.own.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, number: u64) -> Option<MutexGuard<'_, Slot>> {
        let slot = self.slots.get(usize::try_from(number).ok()?)?;
        Some(slot.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The slot at an address, which is a page's.
    fn slot_at(&self, address: u64) -> Option<MutexGuard<'_, Slot>> {
        let page = u64::try_from(PAGE_SIZE).ok()?;
        self.slot(address / page)
            .filter(|_| address.is_multiple_of(page))
    }

    /// Takes the domain's own page at `number` out, if it is `fit` for that.
    fn remove(&self, number: u64, fit: impl Fn(&Frame) -> bool) -> Option<Frame> {
        let mut own = self.own_mut();
        let page = own.get_mut(usize::try_from(number).ok()?)?;
        let frame = page.take_if(|frame| fit(frame))?;
        *self.slot(number)? = Slot::Empty;
        self.owned.fetch_sub(1, Ordering::Relaxed);
        Some(frame)
    }

    /// Puts a page at `number`, in place of one of the domain's own if there is one; false where something is mapped.
    fn put(&self, number: u64, frame: Frame) -> bool {
        let mut own = self.own_mut();
        let index = usize::try_from(number).ok();
        let page = index.and_then(|index| own.get_mut(index));
        let (Some(page), Some(mut slot)) = (page, self.slot(number)) else {
            return false;
        };
        if matches!(*slot, Slot::Granted(..)) {
            return false;
        }
        *slot = Slot::Own;
        if page.replace(frame).is_some() {
            self.owned.fetch_sub(1, Ordering::Relaxed);
        }
        true
    }
}

impl Frames for RwLockReadGuard<'_, Own> {
    fn frame(&mut self, number: u64) -> Option<(&Frame, Access)> {
        let page = self.get(usize::try_from(number).ok()?)?;
        Some((page.as_ref()?, Access::ReadWrite))
    }
}

impl Memory for Pages {
    fn frame(&self, number: u64) -> Option<(Frame, Access)> {
        let mut own = self.own();
        let (frame, access) = own.frame(number)?;
        Some((frame.clone(), access))
    }

    fn frames(&self) -> Box<dyn Frames + '_> {
        Box::new(self.own())
    }

    fn map(&self, address: u64, frame: Frame, access: Access) -> Result<(), Refusal> {
        let mut slot = self.slot_at(address).ok_or(Refusal::General)?;
        if !matches!(*slot, Slot::Empty) {
            return Err(Refusal::General);
        }
        let frame = match access {
            Access::ReadOnly => frame.read_only(),
            Access::ReadWrite => frame,
        };
        *slot = Slot::Granted(frame, access);
        Ok(())
    }

    fn unmap(&self, address: u64, frame: u64, replacement: u64) -> Result<(), Refusal> {
        let lock = |address| self.slot_at(address).ok_or(Refusal::General);
        // Both locks, in the order of their addresses.
        let (mut slot, mut new) = match replacement {
            0 => (lock(address)?, None),
            _ if replacement > address => {
                let slot = lock(address)?;
                (slot, Some(lock(replacement)?))
            }
            _ if replacement < address => {
                let new = lock(replacement)?;
                (lock(address)?, Some(new))
            }
            _ => return Err(Refusal::General),
        };
        if !matches!(&*slot, Slot::Granted(mapped, _) if mapped.number() == frame) {
            return Err(Refusal::General);
        }
        *slot = new.as_deref_mut().map(std::mem::take).unwrap_or_default();
        Ok(())
    }

    fn take(&self, number: u64) -> Result<Frame, Refusal> {
        self.remove(number, Frame::is_sole).ok_or(Refusal::BadPage)
    }

    fn give(&self, frame: Frame, place: &mut dyn FnMut() -> Option<u64>) -> bool {
        let reserved = self
            .owned
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |owned| {
                (owned < self.limit).then(|| owned.saturating_add(1))
            });
        if reserved.is_err() {
            return false;
        }
        let given = place().is_some_and(|number| self.put(number, frame));
        if !given {
            self.owned.fetch_sub(1, Ordering::Relaxed);
        }
        given
    }
}
