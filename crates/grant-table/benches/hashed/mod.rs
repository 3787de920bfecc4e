//! The obvious way: all state in hash maps, under one mutex. It checks and marks the shared entries as the real one does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use grant_table::frame::Frame;
use grant_table::guest::Grants;
use grant_table::hypervisor::Pages;
use grant_table::spec::DomId;
use grant_table::spec::grant::{EntryFlags, GrantRef, Header, MapGrantRef, UnmapGrantRef};
use grant_table::table::EntryTable;

struct Active {
    pin: u32,
    frame: Frame,
}

#[derive(Default)]
struct State {
    tables: HashMap<DomId, EntryTable>,
    frames: HashMap<(DomId, u64), Frame>,
    active: HashMap<(DomId, GrantRef), Active>,
    mappings: HashMap<u32, (DomId, GrantRef, u64)>,
    /// What is mapped where.
    memory: HashMap<u64, Frame>,
    next: u32,
}

pub struct Hashed(Mutex<State>);

impl Hashed {
    pub fn new(grants: &Grants, pages: &Arc<Pages>) -> Self {
        let frames = (0..).map_while(|number| Some(((DomId(0), number), pages.reach(number)?.0)));
        Self(Mutex::new(State {
            tables: HashMap::from([(DomId(0), grants.table().clone())]),
            frames: frames.collect(),
            ..State::default()
        }))
    }

    pub fn map(&self, operations: &mut [MapGrantRef]) {
        for op in operations {
            let mut state = self.0.lock().unwrap();
            op.status = match state.map(op) {
                Some(handle) => {
                    op.handle = handle;
                    0
                }
                None => -1,
            };
        }
    }

    pub fn unmap(&self, operations: &mut [UnmapGrantRef]) {
        for op in operations {
            let mut state = self.0.lock().unwrap();
            op.status = if state.unmap(op).is_some() { 0 } else { -4 };
        }
    }
}

fn change(word: &AtomicU32, change: impl Fn(EntryFlags) -> Option<EntryFlags>) -> Option<()> {
    let update = |word| {
        let header = Header::from_word(word);
        Some(
            Header {
                flags: change(header.flags)?,
                ..header
            }
            .word(),
        )
    };
    word.fetch_update(Ordering::AcqRel, Ordering::Acquire, update)
        .ok()
        .map(drop)
}

impl State {
    fn map(&mut self, op: &MapGrantRef) -> Option<u32> {
        let key = (op.domain, op.reference);
        let table = self.tables.get(&op.domain)?;
        if !self.active.contains_key(&key) {
            let permits = |flags: EntryFlags| flags.contains(EntryFlags::PERMIT_ACCESS);
            change(table.header(op.reference)?, |flags| {
                permits(flags).then_some(flags | EntryFlags::IN_USE)
            })?;
            let frame = self
                .frames
                .get(&(op.domain, table.frame(op.reference)?))?
                .clone();
            self.active.insert(key, Active { pin: 0, frame });
        }
        let active = self.active.get_mut(&key)?;
        active.pin += 1;
        self.memory.insert(op.host_address, active.frame.clone());
        self.next = self.next.wrapping_add(1);
        self.mappings
            .insert(self.next, (op.domain, op.reference, op.host_address));
        Some(self.next)
    }

    fn unmap(&mut self, op: &UnmapGrantRef) -> Option<()> {
        let (domain, reference, address) = self.mappings.remove(&op.handle)?;
        self.memory.remove(&address)?;
        let active = self.active.get_mut(&(domain, reference))?;
        active.pin -= 1;
        if active.pin == 0 {
            self.active.remove(&(domain, reference));
            let table = self.tables.get(&domain)?;
            change(table.header(reference)?, |flags| {
                Some(flags - EntryFlags::IN_USE)
            })?;
        }
        Some(())
    }
}
