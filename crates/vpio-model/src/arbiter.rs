//! One device, several guests: who has it, who waits, and when it changes hands.

use std::collections::VecDeque;
use std::fmt;

use crate::engine::{At, Denied, Dma, Engine, Physical};
use crate::language::Policy;

/// Names a guest of an arbiter. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestId(u64);

impl fmt::Display for GuestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest {}", self.0)
    }
}

/// What to do about input for a guest that does not have the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InputPolicy {
    /// Remember that there is some.
    Hold,
    /// Forget it.
    Drop,
    /// Give the guest the device.
    Switch,
}

/// How an arbiter shares. Times are in whatever [`tick`](Arbiter::tick) is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharing {
    /// How long a guest keeps the device at least, if it uses it.
    pub quantum: u64,
    /// How long a guest waits before the device is taken from another by force.
    pub patience: u64,
    /// What becomes of input for a guest that does not have the device.
    pub input: InputPolicy,
}

/// What became of input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// The guest has the device: give it.
    Deliver,
    /// The guest gets it later: [`Arbiter::take_held`] tells how often.
    Held,
    /// It is lost.
    Dropped,
}

/// Why a device was to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It was nobody's.
    Free,
    /// It was reusable, and its owner's time was over.
    Reusable,
    /// Whoever has it now waited for too long.
    Forced,
}

/// How a guest came to have the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The guest.
    pub guest: GuestId,
    /// Why it has it now.
    pub why: Why,
    /// How long it waited, in what [`tick`](Arbiter::tick) is given.
    pub waited: u64,
    /// Whether it asked for the device. Otherwise there was only input for it.
    pub asked: bool,
    /// Whether the device is what it was when the guest last had it. Otherwise it was reset.
    pub replayed: bool,
}

/// Told that the device is a guest's now, and that what it was refused is worth trying again.
pub trait Wake: Send {
    /// The guest has the device.
    fn wake(&self, handover: &Handover);
}

impl<F: Fn(&Handover) + Send> Wake for F {
    fn wake(&self, handover: &Handover) {
        self(handover);
    }
}

/// A guest that does not have the device.
struct Waiting {
    guest: GuestId,
    since: u64,
    /// Whether it wants to use it.
    asks: bool,
}

/// What an arbiter did until now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// The device changed hands while it was reusable.
    pub switches: u64,
    /// It was taken by force.
    pub forced: u64,
}

struct Guest<D> {
    id: GuestId,
    engine: Engine<D>,
    wake: Box<dyn Wake>,
    /// Whether the device has to be made what it was.
    has_context: bool,
    /// Whether it had the device since it was last reset for it: input may come for it.
    uses: bool,
    held: u64,
}

/// Multiplexes a device.
pub struct Arbiter<D, P> {
    physical: P,
    sharing: Sharing,
    guests: Vec<Guest<D>>,
    owner: Option<GuestId>,
    waiting: VecDeque<Waiting>,
    /// Accesses of the owner that are under way.
    inside: u64,
    /// When the owner's turn began: at the first tick after the device was made ready for it, which takes time of nobody's.
    since: Option<u64>,
    now: u64,
    next: u64,
    counts: Counts,
}

impl<D: Dma, P: Physical> Arbiter<D, P> {
    /// Nobody has the device; it is reset.
    pub fn new(physical: P, sharing: Sharing) -> Self {
        physical.reset();
        Self {
            physical,
            sharing,
            guests: Vec::new(),
            owner: None,
            waiting: VecDeque::new(),
            inside: 0,
            since: None,
            now: 0,
            next: 0,
            counts: Counts::default(),
        }
    }

    /// Adds a guest with its own view of the device and of its memory.
    pub fn add(&mut self, engine: Engine<D>, wake: Box<dyn Wake>) -> GuestId {
        let id = GuestId(self.next);
        self.next += 1;
        self.guests.push(Guest {
            id,
            engine,
            wake,
            has_context: false,
            uses: false,
            held: 0,
        });
        id
    }

    /// Forgets a guest, which may be dead. If it had the device, that is reset: it moves none of the guest's memory any more.
    pub fn remove(&mut self, guest: GuestId) {
        self.waiting.retain(|waiting| waiting.guest != guest);
        if self.owner == Some(guest) {
            self.physical.reset();
            self.owner = None;
            self.inside = 0;
        }
        self.guests.retain(|known| known.id != guest);
        self.settle();
    }

    /// A guest resets its device: it finds it reset when it next has it, which may be now.
    pub fn reset(&mut self, guest: GuestId) {
        if let Ok((engine, physical)) = self.parts(guest) {
            physical.reset();
            engine.reset();
        }
        if let Some(known) = self.guests.iter_mut().find(|known| known.id == guest) {
            known.has_context = false;
            known.uses = false;
        }
    }

    /// Who has the device.
    pub fn owner(&self) -> Option<GuestId> {
        self.owner
    }

    /// What happened until now.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// A guest wants to use the device. Whether it has it; then each such call is followed by a [`leave`](Self::leave), and the
    /// device does not change hands in between. Otherwise the guest waits, and is woken.
    pub fn enter(&mut self, guest: GuestId) -> bool {
        if self.owner != Some(guest) && self.guests.iter().any(|known| known.id == guest) {
            self.wait(guest, true);
            self.settle();
        }
        let has = self.owner == Some(guest);
        self.inside += u64::from(has);
        has
    }

    /// The access is over.
    pub fn leave(&mut self, guest: GuestId) {
        if self.owner == Some(guest) {
            self.inside = self.inside.saturating_sub(1);
            self.settle();
        }
    }

    /// Writes a register for the owner, between [`enter`](Self::enter) and [`leave`](Self::leave).
    ///
    /// # Errors
    ///
    /// The model denies it, or the guest is not the owner.
    pub fn write(&mut self, guest: GuestId, at: At, value: u64) -> Result<(), Denied> {
        let (engine, physical) = self.parts(guest)?;
        match engine.write(at, value, physical) {
            Ok(value) => {
                physical.write(at.space, at.offset, at.width, value);
                Ok(())
            }
            Err(denied) => Err(refused(engine, physical, denied)),
        }
    }

    /// Reads a register for the owner, between [`enter`](Self::enter) and [`leave`](Self::leave).
    ///
    /// # Errors
    ///
    /// The model denies it, or the guest is not the owner.
    pub fn read(&mut self, guest: GuestId, at: At) -> Result<u64, Denied> {
        let (engine, physical) = self.parts(guest)?;
        let result = engine.before_read(at).and_then(|watched| {
            let value = physical.read(at.space, at.offset, at.width);
            if watched {
                engine.after_read(at, value, physical)
            } else {
                Ok(value)
            }
        });
        result.map_err(|denied| refused(engine, physical, denied))
    }

    /// The device interrupts: whom to tell.
    pub fn interrupt(&mut self) -> Option<GuestId> {
        let owner = self.owner?;
        let (engine, physical) = self.parts(owner).ok()?;
        if let Err(denied) = engine.interrupt(physical) {
            refused(engine, physical, denied);
        }
        Some(owner)
    }

    /// Input has come for a guest, as whoever looks at it found out.
    pub fn input(&mut self, guest: GuestId) -> Input {
        if self.owner == Some(guest) {
            return Input::Deliver;
        }
        let Some(known) = self.guests.iter_mut().find(|known| known.id == guest) else {
            return Input::Dropped;
        };
        if self.sharing.input == InputPolicy::Drop {
            return Input::Dropped;
        }
        known.held = known.held.saturating_add(1);
        if self.sharing.input == InputPolicy::Switch {
            self.wait(guest, false);
            self.settle();
        }
        Input::Held
    }

    /// The same for each guest that uses the device and does not have it, where nobody can look: what is for them does not show while the
    /// device is another's, such as a network card's frames for another address.
    pub fn input_unseen(&mut self) {
        let (owner, uses) = (self.owner, |known: &&Guest<D>| known.uses);
        let using = self.guests.iter().filter(uses).map(|known| known.id);
        let others: Vec<_> = using.filter(|id| Some(*id) != owner).collect();
        for guest in others {
            self.input(guest);
        }
    }

    /// How much input was held for a guest since this was last asked.
    pub fn take_held(&mut self, guest: GuestId) -> u64 {
        let known = self.guests.iter_mut().find(|known| known.id == guest);
        known.map_or(0, |known| std::mem::take(&mut known.held))
    }

    /// It is `now`, which never goes back. Whoever waits for too long gets the device, and its owner a device that was reset.
    pub fn tick(&mut self, now: u64) {
        self.now = self.now.max(now);
        self.since.get_or_insert(self.now);
        if let Some(owner) = self.owner
            && let Ok((engine, physical)) = self.parts(owner)
            && let Err(denied) = engine.timer(physical)
        {
            refused(engine, physical, denied);
        }
        self.settle();
        let Some(first) = self.waiting.front() else {
            return;
        };
        let waits = self.now - first.since;
        if self.owner.is_some() && self.inside == 0 && waits >= self.sharing.patience {
            self.counts.forced += 1;
            self.give(Why::Forced);
        }
    }

    fn parts(&mut self, guest: GuestId) -> Result<(&mut Engine<D>, &P), Denied> {
        let known = self.guests.iter_mut().find(|known| known.id == guest);
        match known {
            Some(known) if self.owner == Some(guest) => Ok((&mut known.engine, &self.physical)),
            _ => Err(Denied {
                policy: Policy::Ignore,
                reason: "the device is another guest's".into(),
            }),
        }
    }

    fn wait(&mut self, guest: GuestId, asks: bool) {
        let known = self
            .waiting
            .iter_mut()
            .find(|waiting| waiting.guest == guest);
        match known {
            Some(waiting) => waiting.asks |= asks,
            None => self.waiting.push_back(Waiting {
                guest,
                since: self.now,
                asks,
            }),
        }
    }

    /// Lets the device change hands if somebody waits, and nothing is against it.
    fn settle(&mut self) {
        if self.waiting.is_empty() || self.inside > 0 {
            return;
        }
        match self.owner {
            None => self.give(Why::Free),
            Some(owner)
                if self
                    .since
                    .is_some_and(|since| self.now - since >= self.sharing.quantum) =>
            {
                let reusable = self
                    .parts(owner)
                    .is_ok_and(|(engine, physical)| engine.is_reusable(physical));
                if reusable {
                    self.counts.switches += 1;
                    self.give(Why::Reusable);
                }
            }
            Some(_) => {}
        }
    }

    /// Gives the device to whoever waits longest. The owner's context is kept only if the device is reusable.
    fn give(&mut self, why: Why) {
        let keep = why == Why::Reusable;
        if let Some(owner) = self.owner.take()
            && let Some(guest) = self.guests.iter_mut().find(|known| known.id == owner)
        {
            guest.has_context = keep && guest.engine.save_device(&self.physical).is_ok();
        }
        self.physical.reset();
        let Some(next) = self.waiting.pop_front() else {
            return;
        };
        let Some(guest) = self.guests.iter_mut().find(|known| known.id == next.guest) else {
            return;
        };
        let restored = guest.has_context && guest.engine.restore_device(&self.physical).is_ok();
        if !restored {
            self.physical.reset();
            guest.engine.reset();
        }
        guest.uses = true;
        self.owner = Some(next.guest);
        self.since = None;
        guest.wake.wake(&Handover {
            guest: next.guest,
            why,
            waited: self.now - next.since,
            asked: next.asks,
            replayed: restored,
        });
    }
}

/// Does what a denial asks for, as far as it is the device's.
fn refused<D: Dma>(engine: &mut Engine<D>, physical: &impl Physical, denied: Denied) -> Denied {
    if denied.policy == Policy::Reset {
        physical.reset();
        engine.reset();
    }
    denied
}
