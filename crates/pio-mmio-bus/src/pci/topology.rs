use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::RequesterId;
use super::function::PciFunction;

/// Why a function could not be placed on a bus.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TopologyError {
    /// There is a function already.
    #[error("{0} is taken")]
    Taken(RequesterId),
}

/// A bus and the functions on it. Its number is what the guest programs into the bridge above it.
pub struct PciBus {
    state: RwLock<State>,
}

struct State {
    number: u8,
    /// Whether the bridge above forwards requests of the functions.
    upstream: bool,
    functions: BTreeMap<u8, Arc<dyn PciFunction>>,
}

impl PciBus {
    /// An empty bus with this number.
    pub fn new(number: u8) -> Self {
        Self {
            state: RwLock::new(State {
                number,
                upstream: true,
                functions: BTreeMap::new(),
            }),
        }
    }

    /// Places `function` at `devfn` (see [`RequesterId::devfn`]) and tells it its identity.
    pub fn insert(&self, devfn: u8, function: Arc<dyn PciFunction>) -> Result<(), TopologyError> {
        let mut state = self.write();
        let id = RequesterId::new(state.number, devfn);
        if state.functions.contains_key(&devfn) {
            return Err(TopologyError::Taken(id));
        }
        function.set_requester(id);
        function.set_upstream(state.upstream);
        state.functions.insert(devfn, function);
        Ok(())
    }

    /// Takes the function at `devfn` off the bus and resets it, so that it decodes nothing any more.
    pub fn remove(&self, devfn: u8) -> Option<Arc<dyn PciFunction>> {
        let function = self.write().functions.remove(&devfn)?;
        function.reset();
        Some(function)
    }

    /// The function that answers to `id`: on this bus, or [behind](PciFunction::behind) a function on it.
    pub fn find(&self, id: RequesterId) -> Option<Arc<dyn PciFunction>> {
        let state = self.read();
        let own = (id.bus() == state.number).then(|| state.functions.get(&id.devfn()));
        let functions = &state.functions;
        let behind = || functions.values().find_map(|function| function.behind(id));
        own.flatten().cloned().or_else(behind)
    }

    /// Resets all functions on this bus.
    pub fn reset(&self) {
        let functions: Vec<_> = self.read().functions.values().cloned().collect();
        for function in functions {
            function.reset();
        }
    }

    /// Takes the number that `number` reads once no other renumbering is under way, and tells it to all functions. A bus that
    /// is numbered 0 is not reached any more, and its functions keep the identity they had.
    pub(super) fn renumber(&self, number: impl FnOnce() -> u8) {
        let mut state = self.write();
        let number = number();
        if number == 0 || number == state.number {
            return;
        }
        state.number = number;
        for (&devfn, function) in &state.functions {
            function.set_requester(RequesterId::new(number, devfn));
        }
    }

    /// Tells all functions whether their requests are forwarded, as `forwarded` says once no other such change is under way.
    pub(super) fn set_upstream(&self, forwarded: impl FnOnce() -> bool) {
        let mut state = self.write();
        let forwarded = forwarded();
        if forwarded == state.upstream {
            return;
        }
        state.upstream = forwarded;
        for function in state.functions.values() {
            function.set_upstream(forwarded);
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}
