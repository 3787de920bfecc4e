//! Descriptors: from guest memory, checked, to the shadow that the device looks at; and what the device writes there, back.

use std::collections::VecDeque;

use super::{Dma, Live, Physical};
use crate::model::program::{Frame, INDEX, Which};
use crate::model::{Model, Table};

/// Bytes of the longest entry.
const LONGEST: usize = 64;

/// Entries that the device has and has not given back.
#[derive(Debug)]
pub(super) struct Outstanding {
    entries: VecDeque<Entry>,
    /// Whether they come back in the order in which they went.
    ordered: bool,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    guest: u64,
    shadow: u64,
    index: u64,
}

impl Outstanding {
    pub fn new(table: &Table) -> Self {
        let most = usize::try_from(table.max).unwrap_or(0);
        Self {
            entries: VecDeque::with_capacity(most),
            ordered: true,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn clear(&mut self) {
        self.entries.clear();
    }

    fn has(&self, shadow: u64) -> bool {
        self.entries.iter().any(|entry| entry.shadow == shadow)
    }

    /// The oldest gives way where there are too many: a device cannot have the same entry twice.
    fn push(&mut self, entry: Entry) {
        if self.entries.len() == self.entries.capacity() {
            self.entries.pop_front();
        }
        self.entries.push_back(entry);
    }
}

/// What came of one entry.
enum Step {
    /// The device has it. Which is next, None after the last.
    Taken(Option<u64>),
    /// It is not the device's.
    NotOwned,
}

/// One table in one place.
#[derive(Clone, Copy)]
struct Place {
    table: usize,
    guest: u64,
    shadow: u64,
    count: u64,
}

impl<D: Dma, P: Physical> Live<'_, D, P> {
    pub(super) fn fetch_entries(
        &mut self,
        model: &Model,
        frame: &mut Frame,
        number: usize,
        which: Which,
        (from, to): (u64, u64),
    ) -> Option<u64> {
        let table = model.tables.get(number)?;
        let (base, count) = table.at?;
        let place = Place {
            table: number,
            guest: model.evaluate(base, frame, self),
            count: model.evaluate(count, frame, self),
            shadow: table.offset,
        };
        if place.count == 0 || place.count > table.max {
            return None;
        }
        if let Some(outstanding) = self.outstanding.get_mut(number) {
            outstanding.ordered = which != Which::Bits;
        }
        match which {
            Which::Range => {
                if from >= place.count || to >= place.count {
                    return None;
                }
                let mut index = from;
                while index != to {
                    self.take(model, frame, place, index)?;
                    index = (index + 1) % place.count;
                }
                Some(to)
            }
            Which::Bits => {
                for index in (0..64).filter(|bit| from >> bit & 1 != 0) {
                    if index >= place.count {
                        return None;
                    }
                    self.take(model, frame, place, index)?;
                }
                Some(0)
            }
            Which::Chain => self.chain(model, frame, place, from),
        }
    }

    fn chain(
        &mut self,
        model: &Model,
        frame: &mut Frame,
        place: Place,
        mut index: u64,
    ) -> Option<u64> {
        if index >= place.count {
            return None;
        }
        let table = model.tables.get(place.table)?;
        for _ in 0..place.count {
            let shadow = place.shadow.checked_add(index.checked_mul(table.entry)?)?;
            let outstanding = self.outstanding.get(place.table);
            if outstanding.is_some_and(|outstanding| outstanding.has(shadow)) {
                // All around the ring: the device has this one.
                return Some(index);
            }
            match self.take(model, frame, place, index)? {
                Step::Taken(Some(next)) => index = next,
                Step::Taken(None) | Step::NotOwned => return Some(index),
            }
        }
        // A device would go on behind the last entry that there is room for.
        table.last.is_none().then_some(index)
    }

    /// Checks one entry and lets the device have it. None if the guest may not.
    fn take(&mut self, model: &Model, frame: &mut Frame, place: Place, index: u64) -> Option<Step> {
        let table = model.tables.get(place.table)?;
        let within = table.head.checked_add(index.checked_mul(table.entry)?)?;
        let guest = place.guest.checked_add(within)?;
        let shadow = place.shadow.checked_add(within)?;
        let mut bytes = [0; LONGEST];
        let bytes = bytes.get_mut(..usize::try_from(table.entry).ok()?)?;
        // The one time that the guest's words are read.
        if !self.dma.read(guest, bytes) {
            return None;
        }
        frame.set(INDEX, index);
        for field in &table.fields {
            frame.set(field.slot, load(bytes, field.offset, field.width)?);
        }
        if let Some(during) = table.during
            && model.evaluate(during, frame, self) == 0
        {
            return Some(Step::NotOwned);
        }
        for buffer in &table.buffers {
            if let Some(condition) = buffer.condition
                && model.evaluate(condition, frame, self) == 0
            {
                continue;
            }
            let length = model.evaluate(buffer.length, frame, self);
            let field = table.fields.get(buffer.field)?;
            let address = frame.get(field.slot);
            let address = self.dma.translate(address, length, buffer.access)?;
            store(bytes, field.offset, field.width, address)?;
        }
        if let Some(follow) = &table.follow {
            let child = model.tables.get(follow.table)?;
            let field = table.fields.get(follow.field)?;
            let inner = Place {
                table: follow.table,
                guest: frame.get(field.slot),
                shadow: child
                    .offset
                    .checked_add(index.checked_mul(child.bytes())?)?,
                count: model.evaluate(follow.count, frame, self),
            };
            self.take_all(model, frame, inner)?;
            frame.set(INDEX, index);
            let address = self.dma.shadow().checked_add(inner.shadow)?;
            store(bytes, field.offset, field.width, address)?;
        }
        // Whoever owns an entry is said in its first bytes, which therefore come last.
        let (first, rest) = bytes.split_at(bytes.len().min(4));
        self.dma.write_shadow(shadow.checked_add(4)?, rest);
        self.dma.write_shadow(shadow, first);
        let mut holds =
            |code: Option<_>| code.is_some_and(|code| model.evaluate(code, frame, self) != 0);
        let (last, wrap) = (holds(table.last), holds(table.wrap));
        if table.done.is_some()
            && let Some(outstanding) = self.outstanding.get_mut(place.table)
        {
            *self.lent = true;
            outstanding.push(Entry {
                guest,
                shadow,
                index,
            });
        }
        let next = if wrap {
            0
        } else {
            (index + 1) % place.count.max(1)
        };
        Some(Step::Taken((!last).then_some(next)))
    }

    /// What is before the first entry, as it is, and all entries.
    fn take_all(&mut self, model: &Model, frame: &mut Frame, place: Place) -> Option<()> {
        let table = model.tables.get(place.table)?;
        if place.count > table.max {
            return None;
        }
        let mut done = 0;
        while done < table.head {
            let mut chunk = [0; LONGEST];
            let length = usize::try_from(table.head - done).unwrap_or(LONGEST);
            let chunk = chunk.get_mut(..length.min(LONGEST))?;
            if !self.dma.read(place.guest.checked_add(done)?, chunk) {
                return None;
            }
            self.dma
                .write_shadow(place.shadow.checked_add(done)?, chunk);
            done = done.checked_add(u64::try_from(chunk.len()).ok()?)?;
        }
        for index in 0..place.count {
            self.take(model, frame, place, index)?;
        }
        Some(())
    }

    /// Copies what the device wrote into entries to the guest, and forgets those that it is done with.
    pub(super) fn give_back(&mut self, model: &Model, frame: &mut Frame) {
        for (number, table) in model.tables.iter().enumerate() {
            let Some(outstanding) = self.outstanding.get(number) else {
                continue;
            };
            let ordered = outstanding.ordered;
            for _ in 0..outstanding.entries.len() {
                let Some(entry) = self.next_outstanding(number) else {
                    break;
                };
                let done = self
                    .give_back_one(model, frame, table, entry)
                    .unwrap_or(true);
                if let (false, Some(outstanding)) = (done, self.outstanding.get_mut(number)) {
                    if ordered {
                        outstanding.entries.push_front(entry);
                        break;
                    }
                    outstanding.entries.push_back(entry);
                }
            }
        }
        *self.lent = self.outstanding.iter().any(|table| !table.is_empty());
    }

    fn next_outstanding(&mut self, table: usize) -> Option<Entry> {
        self.outstanding.get_mut(table)?.entries.pop_front()
    }

    /// Whether the device is done with the entry.
    fn give_back_one(
        &mut self,
        model: &Model,
        frame: &mut Frame,
        table: &Table,
        entry: Entry,
    ) -> Option<bool> {
        let mut bytes = [0; LONGEST];
        let bytes = bytes.get_mut(..usize::try_from(table.entry).ok()?)?;
        self.dma.read_shadow(entry.shadow, bytes);
        frame.set(INDEX, entry.index);
        for field in &table.fields {
            frame.set(field.slot, load(bytes, field.offset, field.width)?);
        }
        let done = model.evaluate(table.done?, frame, self) != 0;
        let (first, end) = table.device;
        let range = usize::try_from(first).ok()?..usize::try_from(end).ok()?;
        if done {
            // The guest may have taken its memory away; that is its own loss.
            let _lost = self
                .dma
                .write(entry.guest.checked_add(first)?, bytes.get(range)?);
        }
        Some(done)
    }
}

fn place(offset: u64, width: u64) -> Option<std::ops::Range<usize>> {
    let first = usize::try_from(offset).ok()?;
    Some(first..first.checked_add(usize::try_from(width).ok()?)?)
}

/// A little-endian number.
fn load(bytes: &[u8], offset: u64, width: u64) -> Option<u64> {
    let from = bytes.get(place(offset, width)?)?;
    let mut word = [0; 8];
    word.get_mut(..from.len())?.copy_from_slice(from);
    Some(u64::from_le_bytes(word))
}

/// None if the number is too wide.
fn store(bytes: &mut [u8], offset: u64, width: u64, value: u64) -> Option<()> {
    let word = value.to_le_bytes();
    let to = bytes.get_mut(place(offset, width)?)?;
    let (low, high) = word.split_at(to.len().min(word.len()));
    if high.iter().any(|byte| *byte != 0) {
        return None;
    }
    to.copy_from_slice(low);
    Some(())
}
