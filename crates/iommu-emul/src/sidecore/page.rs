use std::{fmt, sync::Arc};

use vm_memory::{Bytes, GuestAddress};

use crate::{
    spec::{
        low32,
        register::{ccmd, offset},
    },
    vtd::{
        PhysicalMemory, Unit,
        memory::{read_words, update_word},
    },
};

/// What the sidecore leaves in the global command register when it took the command: a reserved bit, which no driver sets.
pub const GCMD_TAKEN: u32 = 1;

/// Makes the first register page trap, or be memory. A VMM removes and adds its memory slot; while it traps, accesses go to the
/// [`Unit`] as a bus device.
pub trait PageControl: Send {
    /// Returns when no access of the other kind is under way any more.
    fn set_trapped(&self, trapped: bool);
}

/// The words with registers that a guest writes besides commands.
const DATA: [u16; 8] = [
    offset::RTADDR,
    offset::FECTL,
    offset::FEADDR,
    offset::IQA,
    offset::IECTL,
    offset::IEADDR,
    offset::IRTA,
    offset::IQH,
];
/// The words with write-1-to-clear registers.
const FAULT_WORD: u16 = offset::FSTS - 4;
const COMPLETION_WORD: u16 = offset::ICS - 4;

/// A unit whose first register page is memory: what a sidecore polls.
pub struct PolledUnit<M: PhysicalMemory, S: PhysicalMemory> {
    unit: Arc<Unit<M>>,
    page: Page<S>,
    control: Box<dyn PageControl>,
    trapped: bool,
    /// The unit's [`Unit::version`] that the page shows.
    version: u64,
}

/// The page and a copy of what was last found or put there.
struct Page<S> {
    memory: S,
    base: u64,
    copy: [u64; 32],
}

impl<S: PhysicalMemory> Page<S> {
    fn load(&self, at: u16) -> u64 {
        let words = read_words(&*self.memory.memory(), self.base + u64::from(at));
        // A page that is not there never changes.
        words.map_or_else(|| self.copied(at), |[word]| word)
    }

    fn copied(&self, at: u16) -> u64 {
        self.copy.get(usize::from(at / 8)).copied().unwrap_or(0)
    }

    fn set_copy(&mut self, at: u16, word: u64) {
        if let Some(copy) = self.copy.get_mut(usize::from(at / 8)) {
            *copy = word;
        }
    }

    /// Changes a word atomically; returns what was there, or `None` if `update` refused.
    fn update(&self, at: u16, update: impl FnMut(u64) -> Option<u64>) -> Option<u64> {
        let place = self.base + u64::from(at);
        update_word(&*self.memory.memory(), place, update)?.ok()
    }

    /// Shows `word` unless the guest wrote something that was not looked at yet.
    fn show(&mut self, at: u16, word: u64) {
        let seen = self.copied(at);
        if seen == word {
            return;
        }
        let unless_written = |current| (current == seen).then_some(word);
        if self.update(at, unless_written).is_some() {
            self.set_copy(at, word);
        }
    }
}

impl<M: PhysicalMemory, S: PhysicalMemory> PolledUnit<M, S> {
    /// Polls for `unit` the page at `base` in `memory`, which the guest sees where the unit's registers are. The page is filled in;
    /// only after that may it be shown to the guest.
    pub fn new(
        unit: Arc<Unit<M>>,
        memory: S,
        base: GuestAddress,
        control: Box<dyn PageControl>,
    ) -> Self {
        let mut polled = Self {
            unit,
            page: Page {
                memory,
                base: base.0,
                copy: [0; 32],
            },
            control,
            trapped: false,
            version: 0,
        };
        polled.unit.hold_events(true);
        polled.fill();
        polled
    }

    /// The unit.
    pub fn unit(&self) -> &Arc<Unit<M>> {
        &self.unit
    }

    /// Looks once for what the guest wrote and carries it out; returns how many writes that were.
    ///
    /// Commands are read before the registers that they use and carried out after: on x86 what a guest wrote before a command is
    /// there when the command is seen.
    pub fn poll(&mut self) -> usize {
        let mut work = 0;
        if !self.trapped {
            work = self.take_writes();
        }
        if self.unit.version() != self.version {
            self.show();
        }
        work
    }

    fn take_writes(&mut self) -> usize {
        let command = self.page.load(offset::GCMD);
        let context = self.page.load(offset::CCMD);
        let tail = self.page.load(offset::IQT);
        let mut writes = Writes::default();
        for at in DATA {
            let word = self.page.load(at);
            let seen = self.page.copied(at);
            if word != seen {
                if low32(word) != low32(seen) {
                    writes.add(at, word);
                }
                if word >> 32 != seen >> 32 {
                    writes.add(at + 4, word >> 32);
                }
                self.page.set_copy(at, word);
            }
        }
        if low32(command) != GCMD_TAKEN {
            // A command that came after the look at the other registers is left for the next look.
            let taken = |word: u64| word & !0xffff_ffff | u64::from(GCMD_TAKEN);
            let same = |word: u64| (low32(word) == low32(command)).then(|| taken(word));
            if let Some(word) = self.page.update(offset::GCMD, same) {
                self.page.set_copy(offset::GCMD, taken(word));
                writes.add(offset::GCMD, word);
            }
        }
        if context != self.page.copied(offset::CCMD) {
            self.page.set_copy(offset::CCMD, context);
            writes.add(offset::CCMD, context & !ccmd::ICC);
            writes.add(offset::CCMD + 4, context >> 32);
        }
        if tail != self.page.copied(offset::IQT) {
            self.page.set_copy(offset::IQT, tail);
            writes.add(offset::IQT, tail);
        }
        let writes = writes.as_slice();
        if !writes.is_empty() {
            self.unit.write_all(writes);
        }
        writes.len()
    }

    /// Shows the registers' values, and traps the page while a write-1-to-clear register is not 0. Only then are interrupts sent that
    /// tell of them: a handler that finds nothing in the registers takes the interrupt for somebody else's.
    fn show(&mut self) {
        let events = self.unit.take_events();
        self.show_registers();
        self.unit.send_all(events);
    }

    fn show_registers(&mut self) {
        self.version = self.unit.version();
        let words = self.unit.read_page();
        let value = |at: u16| words.get(usize::from(at / 8)).copied().unwrap_or(0);
        let pending = (value(FAULT_WORD) | value(COMPLETION_WORD)) >> 32 != 0;
        if pending && !self.trapped {
            self.control.set_trapped(true);
            self.trapped = true;
            // What the guest wrote until just now.
            self.take_writes();
        } else if self.trapped && !pending {
            self.fill();
            self.control.set_trapped(false);
            self.trapped = false;
        } else if !self.trapped {
            for (word, at) in words.into_iter().zip((0..).step_by(8)) {
                if at == offset::GCMD {
                    // Only the status half is the unit's.
                    let status = word & !0xffff_ffff;
                    if self.page.copied(at) & !0xffff_ffff != status {
                        let with_status = |word: u64| word & 0xffff_ffff | status;
                        self.page.update(at, |word| Some(with_status(word)));
                        let copy = with_status(self.page.copied(at));
                        self.page.set_copy(at, copy);
                    }
                } else {
                    self.page.show(at, word);
                }
            }
        }
    }

    /// Fills the page in while the guest does not see it.
    fn fill(&mut self) {
        self.version = self.unit.version();
        let mut words = self.unit.read_page();
        if let Some(command) = words.get_mut(usize::from(offset::GCMD / 8)) {
            *command |= u64::from(GCMD_TAKEN);
        }
        self.page.copy = words;
        let memory = self.page.memory.memory();
        for (word, at) in words.into_iter().zip((0..).step_by(8)) {
            // A page that is not there shows nothing.
            let _absent = memory.write_obj(word.to_le(), GuestAddress(self.page.base + at));
        }
    }
}

impl<M: PhysicalMemory, S: PhysicalMemory> Drop for PolledUnit<M, S> {
    fn drop(&mut self) {
        self.unit.hold_events(false);
    }
}

impl<M: PhysicalMemory, S: PhysicalMemory> fmt::Debug for PolledUnit<M, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolledUnit")
            .field("unit", &self.unit)
            .field("trapped", &self.trapped)
            .finish_non_exhaustive()
    }
}

/// The writes of one look, without allocation: two for each of the words at most.
#[derive(Default)]
struct Writes {
    writes: [(u16, u32); 2 * DATA.len() + 4],
    count: usize,
}

impl Writes {
    fn add(&mut self, at: u16, word: u64) {
        if let Some(write) = self.writes.get_mut(self.count) {
            *write = (at, low32(word));
            self.count += 1;
        }
    }

    fn as_slice(&self) -> &[(u16, u32)] {
        self.writes.get(..self.count).unwrap_or_default()
    }
}
