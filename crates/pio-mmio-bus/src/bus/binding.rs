use std::collections::BTreeMap;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::{BusError, DoorbellAddress, DoorbellBinder, DoorbellId, Result};

/// The doorbells that a binder should have, with their addresses.
pub type Wanted = BTreeMap<DoorbellId, (DoorbellAddress, Arc<EventFd>)>;

/// The doorbells that a binder has.
#[derive(Default)]
pub struct Bindings {
    binder: Option<Arc<dyn DoorbellBinder>>,
    entries: BTreeMap<DoorbellId, Binding>,
}

struct Binding {
    address: DoorbellAddress,
    eventfd: Arc<EventFd>,
    /// Whether the binder took it. If not, it is not asked again for this address.
    bound: bool,
}

impl Bindings {
    /// Has another binder take over what is `wanted`.
    pub fn set_binder(
        &mut self,
        binder: Option<Arc<dyn DoorbellBinder>>,
        wanted: Wanted,
    ) -> Result<()> {
        self.release(&Wanted::new());
        self.binder = binder;
        self.bind(wanted)
    }

    /// Unbinds what is not wanted any more, or not there.
    pub fn release(&mut self, wanted: &Wanted) {
        let binder = self.binder.as_ref();
        self.entries.retain(|id, binding| {
            let keep = wanted
                .get(id)
                .is_some_and(|(address, _)| *address == binding.address);
            if let Some(binder) = binder.filter(|_| binding.bound && !keep) {
                binder.unbind(&binding.address, &binding.eventfd);
            }
            keep
        });
    }

    /// Binds what is wanted and new. Goes on after an error, and returns the first.
    pub fn bind(&mut self, wanted: Wanted) -> Result<()> {
        let Some(binder) = &self.binder else {
            return Ok(());
        };
        let mut first = Ok(());
        for (id, (address, eventfd)) in wanted {
            if self.entries.contains_key(&id) {
                continue;
            }
            let result = binder.bind(&address, &eventfd);
            let bound = result.is_ok();
            self.entries.insert(
                id,
                Binding {
                    address,
                    eventfd,
                    bound,
                },
            );
            first = first.and(result.map_err(|source| BusError::Bind { address, source }));
        }
        first
    }
}
